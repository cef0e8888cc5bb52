"""Tokens aligned: those that stayed are found, in order, and each is the token that it is said to be."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fvlm_lib.language.alignment import align_ids, align_rows

IDS = st.lists(st.integers(0, 5), max_size=30)


def check(old: list[int], new: list[int]) -> list[int]:
    source = align_ids(old, new).tolist()
    assert len(source) == len(new)
    kept = [(place, i) for i, place in enumerate(source) if place >= 0]
    assert kept == sorted(kept) and len({place for place, _ in kept}) == len(kept)  # in order, none twice
    assert all(old[place] == new[i] for place, i in kept)
    return source


@given(IDS, IDS)
def test_what_is_aligned_is_the_same_token(old, new):
    check(old, new)


@given(IDS, IDS, IDS)
def test_what_stands_at_both_ends_is_kept(begin, old, end):
    new = [7, 8]
    source = check(begin + old + end, begin + new + end)
    assert source[: len(begin)] == list(range(len(begin)))
    total = len(begin + old + end)
    assert source[len(begin) + 2 :] == list(range(total - len(end), total))


def test_lines_that_scroll_are_found():
    stream = list(range(100, 148))  # twelve lines of four tokens
    old, new = stream[:40], stream[8:]
    assert check(old, new) == list(range(8, 40)) + [-1] * 8
    assert check(old, stream[44:] + old) == [-1] * 4 + list(range(40))


def test_rows_are_aligned_in_place_or_at_the_ends():
    rows = torch.arange(12.0).view(6, 2)
    assert align_rows(rows, rows + 1).tolist() == list(range(6))
    longer = torch.cat([rows[:2], torch.ones(3, 2), rows[2:]])
    assert align_rows(rows, longer).tolist() == [0, 1, -1, -1, -1, 2, 3, 4, 5]
    assert align_rows(longer, rows).tolist() == [0, 1, 5, 6, 7, 8]
    assert align_rows(rows, torch.cat([rows, rows[-1:]])).tolist() == [0, 1, 2, 3, 4, 5, -1]
