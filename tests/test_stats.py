"""The paired bootstrap: divided once, paired exactly, covering what it says, and strict about its input."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import fvlm_lib.stats as stats
from fvlm_lib.stats import (
    Estimate,
    bootstrap,
    difference,
    percent_difference,
    percentile_interval,
    ratio,
    resample_statistics,
    resample_sums,
    top_share,
)

LOSS = {"loss": ratio("nll", "num_tokens")}


def _samples(num_samples: int = 50, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(1, 40, size=num_samples)
    training = rng.gamma(4.0, 0.5, size=num_samples) * num_tokens
    inference = training * 1.05 + rng.normal(0.0, 0.1, size=num_samples)
    return {"nll": training, "nll_inference": inference, "num_tokens": num_tokens}


def test_value_is_sums_divided_once() -> None:
    columns = {"nll": np.array([10.0, 2.0]), "num_tokens": np.array([100, 2])}
    estimate = bootstrap(columns, LOSS, num_resamples=200)["loss"]
    assert estimate.value == 12.0 / 102  # not (0.1 + 1.0) / 2
    assert estimate.low < estimate.value < estimate.high
    assert [*dataclasses.asdict(estimate)] == ["value", "low", "high"]


def test_seed_decides_the_resamples() -> None:
    first, again, other = (bootstrap(_samples(), LOSS, 300, seed)["loss"] for seed in (3, 3, 4))
    assert first == again
    assert first.value == other.value and first != other


def test_mean_interval_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=2000)
    estimate = bootstrap({"x": values, "n": np.ones(2000)}, {"mean": ratio("x", "n")}, 4000)["mean"]
    half_width = 1.96 * values.std() / np.sqrt(2000)
    assert estimate.high - estimate.value == pytest.approx(half_width, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half_width, rel=0.1)


def test_differences_are_paired() -> None:
    columns = _samples()
    columns["nll_same"] = columns["nll"].copy()
    training = ratio("nll", "num_tokens")
    gap = difference(ratio("nll_inference", "num_tokens"), training)
    estimates = bootstrap(
        columns,
        {
            "training": training,
            "gap": gap,
            "gap_percent": percent_difference(ratio("nll_inference", "num_tokens"), training),
            "reverse": difference(training, ratio("nll_inference", "num_tokens")),
            "none": difference(ratio("nll_same", "num_tokens"), training),
        },
    )
    assert estimates["none"] == Estimate(0.0, 0.0, 0.0)
    assert estimates["gap"].value > 0 > estimates["reverse"].value
    assert estimates["gap_percent"].value == pytest.approx(
        100 * estimates["gap"].value / estimates["training"].value, rel=1e-12
    )

    # The losses themselves scatter far more than the gap between them.
    def width(estimate: Estimate) -> float:
        return estimate.high - estimate.low

    assert width(estimates["gap"]) < 0.2 * width(estimates["training"])


def test_same_seed_pairs_separate_calls() -> None:
    columns = _samples()
    together = resample_sums(columns, 100, seed=5)
    alone = resample_sums({"nll_inference": columns["nll_inference"]}, 100, seed=5)
    np.testing.assert_array_equal(alone["nll_inference"], together["nll_inference"])


def test_chunks_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resample_sums(_samples(37), 101, seed=2)
    for draws in (1, 37 * 7, 1000):
        monkeypatch.setattr(stats, "_CHUNK_DRAWS", draws)
        for name, sums in resample_sums(_samples(37), 101, seed=2).items():
            np.testing.assert_array_equal(sums, whole[name])


def test_nominal_95_percent_covers() -> None:
    rng = np.random.default_rng(0)
    truth = 2.0  # E[nll] / E[num_tokens], nll a token independent of the length
    covered = 0
    for data_set in range(400):
        num_tokens = rng.integers(5, 40, size=60)
        nll = rng.gamma(4.0, truth / 4.0, size=60) * num_tokens
        columns = {"nll": nll, "num_tokens": num_tokens}
        estimate = bootstrap(columns, LOSS, num_resamples=400, seed=data_set)["loss"]
        covered += estimate.low <= truth <= estimate.high
    assert 0.90 <= covered / 400 <= 0.985


def test_losses_of_which_few_samples_fail_are_covered_where_percentiles_are_not() -> None:
    rng = np.random.default_rng(0)
    truth = 0.04 * 8.0 / 10  # 4% of captions fail, by 8 nats in the mean, of 10 tokens each
    studentised = percentile = 0
    for data_set in range(300):
        failing = np.where(rng.random(128) < 0.04, rng.gamma(1.0, 8.0, 128), rng.normal(0.0, 0.01, 128))
        columns = {"nll": failing, "num_tokens": np.full(128, 10.0)}
        estimate = bootstrap(columns, LOSS, num_resamples=300, seed=data_set)["loss"]
        plain = percentile_interval(0.0, resample_statistics(columns, LOSS, 300, seed=data_set)["loss"])
        studentised += estimate.low <= truth <= estimate.high
        percentile += plain.low <= truth <= plain.high
    assert studentised / 300 > 0.92
    assert percentile / 300 < 0.88


def test_intervals_move_with_the_unit_and_turn_with_the_sign() -> None:
    columns = _samples()
    first = bootstrap(columns, LOSS)["loss"]
    scaled = bootstrap({**columns, "nll": -3 * columns["nll"]}, LOSS)["loss"]
    for mine, theirs in zip((scaled.value, scaled.low, scaled.high), (first.value, first.high, first.low), strict=True):
        assert mine == pytest.approx(-3 * theirs, rel=1e-6)


def test_a_sum_that_one_sample_carries_has_a_wide_but_finite_interval() -> None:
    columns = {"nll": np.r_[50.0, np.full(99, 1e-9)], "num_tokens": np.full(100, 10.0)}
    estimate = bootstrap(columns, LOSS)["loss"]
    assert estimate.high > 4 * estimate.value and np.isfinite(estimate.high)


def test_the_share_of_the_largest_samples() -> None:
    assert top_share([1.0] * 40) == 0.25
    assert top_share([-5.0, *[1.0] * 5], count=1) == 0.5
    assert top_share([0.0] * 3) == 0.0


def test_level_widens_the_interval() -> None:
    narrow, wide = (bootstrap(_samples(), LOSS, level=level)["loss"] for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_a_data_frame_and_any_statistic_will_do() -> None:
    frame = pd.DataFrame(_samples())
    estimates = bootstrap(frame, {"per_byte": lambda sums: sums["nll"] / (4.5 * sums["num_tokens"])}, 50)
    assert estimates["per_byte"].value == pytest.approx(frame.nll.sum() / frame.num_tokens.sum() / 4.5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"nll": [1.0], "num_tokens": [1]}, "there are 1 samples"),
        ({"nll": [1.0, 2.0, 3.0], "num_tokens": [1, 2]}, "differ in length.*'nll': 3, 'num_tokens': 2"),
        ({"nll": [1.0, np.nan], "num_tokens": [1, 2]}, "column 'nll' is nan at sample 1"),
        ({"nll": [1.0, 2.0], "num_tokens": [np.inf, 2]}, "column 'num_tokens' is inf at sample 0"),
        ({"nll": [1.0, 2.0], "num_tokens": [0, 0]}, "statistic 'loss' is not finite on the samples"),
        ({"nll": [1.0, 2.0], "num_tokens": [0, 1]}, "statistic 'loss' is not finite on .* of 99 resamples"),
        ({"nll": [[1.0], [2.0]], "num_tokens": [1, 2]}, r"column 'nll' has shape \(2, 1\)"),
        ({"nll": ["a", "b"], "num_tokens": [1, 2]}, "column 'nll' holds something that is not a number"),
        ({"nll": [1.0, 2.0]}, "statistic 'loss' wants column 'num_tokens'"),
        ({}, "no columns"),
    ],
)
def test_wrong_columns_are_named(columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(columns, LOSS, num_resamples=99)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap(_samples(), LOSS, level=95)
    with pytest.raises(ValueError, match="num_resamples is 0"):
        bootstrap(_samples(), LOSS, num_resamples=0)
    with pytest.raises(ValueError, match="statistic 'mean' has shape"):
        bootstrap(_samples(), {"mean": lambda sums: np.mean(sums["nll"])})
