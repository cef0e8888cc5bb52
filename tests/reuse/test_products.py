"""Every way of a product gives what nn.Linear gives; which is fastest is found from measured times, within a memory."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fvlm_lib.reuse import fastest
from fvlm_lib.reuse.blocks import Block
from fvlm_lib.reuse.fastest import Products, few_rows_blocks, worth_packing
from fvlm_lib.reuse.packing import FewRowsLinears
from fvlm_lib.reuse.products import ROWS, TRANSPOSED_MOST, Route, Routes, Sample, Times, measure

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}
KINDS = [(way, dtype) for dtype in ROUNDING for way in ("plain", "transposed", "packed")]


@pytest.mark.parametrize(("way", "dtype"), [kind for kind in KINDS if kind[0] != "packed" or kind[1] == torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_every_way_gives_what_the_layers_give_whatever_the_rows_are_padded_to(way, dtype, bias):
    layers = [nn.Linear(16, size, bias=bias, dtype=dtype) for size in (16, 8, 24)]
    product = FewRowsLinears(*layers, pack=way == "packed")
    with torch.no_grad():
        for rows in (*range(0, 20), *range(20, 401, 19), 400, 577):
            x = torch.randn(rows, 16, dtype=dtype)
            for padded in (rows, rows + 1, rows + 7):
                product.routes = Routes((Route(way, 0, 0.0), *[Route(way, padded, 1.0)] * rows))
                for shaped in (x, x[None], x.view(rows, 1, 16)):
                    for out, layer in zip(product(shaped), layers, strict=True):
                        assert out.shape == layer(shaped).shape
                        torch.testing.assert_close(out, layer(shaped), rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


SECONDS = st.floats(1e-6, 1.0)


@given(st.data())
def test_fewer_rows_never_take_longer_and_a_route_is_a_measured_one(data):
    rows = tuple(sorted(data.draw(st.sets(st.integers(1, 40), min_size=2, max_size=8))))
    column = st.lists(SECONDS, min_size=len(rows), max_size=len(rows)).map(tuple)
    times = Times(rows, {way: data.draw(column) for way in ("plain", "transposed", "packed")})
    routes = times.routes(times.seconds)
    found = [routes(n) for n in range(rows[-1] * 2)]
    assert all(fewer.seconds <= more.seconds for fewer, more in itertools.pairwise(found))
    assert all(route.rows >= n for n, route in enumerate(found))
    for place, n in enumerate(rows):
        later = [seconds[other] for seconds in times.seconds.values() for other in range(place, len(rows))]
        assert found[n].seconds == min(later)
        if found[n].rows in rows:
            assert times.seconds[found[n].way][rows.index(found[n].rows)] == found[n].seconds
    assert 0 <= times.saved("packed") < 1


def test_two_rows_are_computed_as_five_where_five_are_faster():
    times = Times((1, 2, 5, 8), {"plain": (1.0, 9.0, 4.0, 6.0), "packed": (3.0, 5.0, 2.0, 8.0)})
    routes = times.routes(["plain", "packed"])
    assert [routes(n) for n in (1, 2, 5)] == [Route("plain", 1, 1.0), *[Route("packed", 5, 2.0)] * 2]
    assert routes(6) == routes(7) == routes(8) == Route("plain", 8, 6.0)  # of 6 and 7 rows nobody knows
    assert routes(16) == Route("plain", 16, 12.0)
    assert times.routes(["plain"])(2) == Route("plain", 5, 4.0)


def test_between_measured_numbers_of_rows_only_multiples_of_the_grain_are_taken():
    times = Times((8, 24, 60), {"plain": (1.0, 3.0, 12.0)})
    found = {(route.rows, route.seconds) for route in times.routes(["plain"]).found[1:]}
    assert found == {(8, 1.0), (16, 2.0), (24, 3.0), (32, 5.0), (48, 9.0), (60, 12.0)}


def test_the_rows_that_fit_into_a_share_of_the_time_follow_the_measured_times():
    nothing = Route("plain", 0, 0.0)
    step = Routes((nothing, *(Route("plain", rows, 1.0 if rows <= 4 else 4.0) for rows in range(1, 9))))
    flat = Routes((nothing, *(Route("plain", rows, 1.0) for rows in range(1, 9))))
    assert Products((step, step), 0).rows_within(0.75, 8) == 4
    assert Products((step, flat), 0).rows_within(0.4, 8) == 4
    assert Products((step, flat), 0).rows_within(0.39, 8) == 0
    assert Products((step,), 0).rows_within(1.0, 8) == 8
    assert Products((step,), 0).rows_within(0.5, 16) == 8  # beyond what was measured: the last time a row


def test_measuring_gives_a_time_of_every_way_and_number_of_rows():
    product = FewRowsLinears(nn.Linear(16, 8), pack=True)
    sample = Sample([product.by], ("plain", "transposed", "packed"), product.linears[0].weight)
    (times,) = measure([sample])
    assert times.rows == ROWS
    measured = {
        way: [n for n, took in zip(ROWS, seconds, strict=True) if took < torch.inf]
        for way, seconds in times.seconds.items()
    }
    few = [rows for rows in ROWS if rows <= TRANSPOSED_MOST]
    assert measured == {"plain": [*ROWS], "transposed": few, "packed": [*ROWS]}


def test_those_that_save_the_most_are_packed_within_the_memory(caplog):
    saved = {("a",): 0.1, ("b",): 0.5, ("c",): 0.3, ("d",): 0.01}
    needed = {("a",): 10, ("b",): 10, ("c",): 25, ("d",): 1}
    assert worth_packing(saved, needed, 45) == {("a",), ("b",), ("c",)} and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert worth_packing(saved, needed, 20) == {("a",), ("b",)}
    assert "pack_memory is 2e-08 GB" in caplog.text
    assert worth_packing(saved, needed, 9) == set()
    assert worth_packing({}, needed, 9) == set()


def blocks(dtype: torch.dtype = torch.float32, width: int = 24) -> tuple[Block, ...]:
    def linear(rows: int = width, columns: int = width) -> nn.Linear:
        return nn.Linear(columns, rows, dtype=dtype)

    return tuple(
        Block(
            nn.Identity(), linear(), linear(), linear(), linear(), nn.Identity(),
            nn.Sequential(linear(2 * width), nn.GELU(), linear(width, 2 * width)), num_heads=2,
        )
        for _ in range(2)
    )  # fmt: skip


def test_a_stack_is_measured_once_in_a_process():
    _, _, products = few_rows_blocks(blocks(), "auto")
    known = dict(fastest._measured)
    _, packed, same = few_rows_blocks(blocks(), "auto")
    assert dict(fastest._measured) == known and same == products
    assert len(products.routes) == 8  # queries with keys and values, output, two of the MLP; two blocks
    assert packed == (same.packed_bytes > 0)
    seconds = [products.seconds(n) for n in range(600)]
    assert seconds == sorted(seconds) and seconds[0] == 0


@pytest.mark.parametrize("memory", [0, 1, 5000, 10**9])
def test_packed_copies_stay_within_the_memory(memory):
    stack = blocks()
    lean, _, products = few_rows_blocks(stack, "auto", memory)
    assert products.packed_bytes <= memory
    copies = [product for block in lean for product in fastest._products(block) if product.packed is not None]
    assert sum(product.nbytes for product in copies) == products.packed_bytes
    x = torch.randn(1, 5, 24)
    with torch.no_grad():
        for block, its_copy in zip(stack, lean, strict=True):
            torch.testing.assert_close(its_copy.finish(x, x[0]), block.finish(x, x[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "measured"), [(torch.float64, True), (torch.bfloat16, True), (torch.float16, False)])
def test_other_dtypes_are_never_packed_and_half_precision_is_not_measured(dtype, measured):
    _, packed, products = few_rows_blocks(blocks(dtype), "auto")
    assert not packed and (products is not None) == measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True, 5), "pack_memory is 5, but pack_weights is True; it goes with 'auto'"),
        (("auto", -1), "pack_memory is -1; it must be at least 0"),
        (("some",), "pack_weights is 'some'; it must be "),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        few_rows_blocks(blocks(), *arguments)
