"""Scaling-law fits find planted constants and say when they cannot."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fvlm_lib.gap.scaling as scaling
from fvlm_lib.gap.scaling import fit_law, fit_scaling_laws, main, predict_loss

POWER = {"a": 20.0, "b": 0.07}
OFFSET = {"E": 1.69, "B": 410.7, "beta": 0.28}
JOINT = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al., equation 10


def _points(form: str, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Scales, losses with a relative noise, and the constants behind them."""
    if form == "power":
        x = np.geomspace(1e15, 1e19, 8)
        planted, loss = POWER, POWER["a"] * x ** -POWER["b"]
    elif form == "offset_power":
        x = np.geomspace(1e6, 1e9, 8)
        planted, loss = OFFSET, OFFSET["E"] + OFFSET["B"] / x ** OFFSET["beta"]
    else:
        n, d = np.array([(n, d) for n in np.geomspace(1e7, 1e9, 4) for d in np.geomspace(1e8, 1e10, 4)]).T
        x = np.column_stack([n, d])
        planted, loss = JOINT, JOINT["E"] + JOINT["A"] / n ** JOINT["alpha"] + JOINT["B"] / d ** JOINT["beta"]
    return x, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss))), planted


def _table(noise: float = 0.0) -> pd.DataFrame:
    x, loss, _ = _points("joint", noise)
    return pd.DataFrame({"num_params": x[:, 0].astype(int), "num_tokens": x[:, 1].astype(int), "loss": loss})


@pytest.mark.parametrize("form", ["power", "offset_power", "joint"])
def test_planted_constants_are_recovered(form: str) -> None:
    x, loss, planted = _points(form)
    fit = fit_law(form, x, loss, num_bootstrap=5)
    assert fit.fitted and fit.converged and fit.at_bound == ()
    found = {name: estimate.value for name, estimate in fit.parameters.items()}
    assert found == pytest.approx(planted, rel=1e-3)
    assert fit.rmse < 1e-6 and fit.r2 == pytest.approx(1.0)
    assert fit.num_starts_at_best >= fit.num_starts // 2
    np.testing.assert_allclose(predict_loss(fit, x), loss, rtol=1e-6)


@pytest.mark.parametrize("form", ["power", "offset_power", "joint"])
def test_intervals_hold_the_planted_constants_under_noise(form: str) -> None:
    held = []
    for seed in range(8):
        x, loss, planted = _points(form, noise=0.01, seed=seed)
        fit = fit_law(form, x, loss, num_bootstrap=30)
        assert fit.fitted and fit.bootstrap == "residual" and fit.num_bootstrap == 30
        assert fit.rmse == pytest.approx(np.sqrt(np.mean((predict_loss(fit, x) - loss) ** 2)))
        estimates = [(fit.parameters[name], value) for name, value in planted.items()]
        held.append([estimate.low <= value <= estimate.high for estimate, value in estimates])
    assert np.sum(held, axis=0).min() >= 6  # of 8 data sets, for every parameter


def test_replicates_are_refitted_each() -> None:
    x, loss, _ = _points("power")
    rng = np.random.default_rng(0)
    common = np.exp(0.02 * rng.standard_normal((60, 1)))  # samples that are harder at every scale alike
    fit = fit_law("power", x, loss, replicates=loss * common)
    assert (fit.bootstrap, fit.num_bootstrap, fit.seed) == ("replicates", 60, None)
    a, b = fit.parameters["a"], fit.parameters["b"]
    assert b.high - b.low < 1e-6  # what is common to all points moves the coefficient, not the exponent
    low, high = POWER["a"] * np.percentile(common, [2.5, 97.5])
    assert (a.low, a.high) == (pytest.approx(low, rel=1e-4), pytest.approx(high, rel=1e-4))


def test_one_outlier_does_not_carry_the_fit() -> None:
    x, loss, planted = _points("offset_power")
    loss[3] *= 1.5
    fit = fit_law("offset_power", x, loss, num_bootstrap=2)
    assert fit.parameters["beta"].value == pytest.approx(planted["beta"], rel=0.02)


def test_two_runs_at_each_scale_are_fitted_down_the_middle() -> None:
    x, loss, planted = _points("power")
    spread = np.exp(0.01 * np.array([[1.0], [-1.0]]))  # ten times delta: any curve between is a median
    fit = fit_law("power", np.tile(x, 2), (loss * spread).ravel(), num_bootstrap=2)
    assert fit.num_starts_at_best == fit.num_starts
    assert fit.parameters["b"].value == pytest.approx(planted["b"], rel=1e-3)
    assert fit.parameters["a"].value == pytest.approx(planted["a"], rel=1e-2)


@pytest.mark.parametrize("form", ["power", "joint"])
def test_order_of_points_does_not_matter(form: str) -> None:
    x, loss, _ = _points(form, noise=0.01)
    shuffled = np.random.default_rng(1).permutation(len(loss))
    first = fit_law(form, x, loss, num_bootstrap=10)
    assert first == fit_law(form, x[shuffled], loss[shuffled], num_bootstrap=10)
    replicates = loss * np.exp(0.01 * np.random.default_rng(2).standard_normal((5, len(loss))))
    first = fit_law(form, x, loss, replicates=replicates)
    assert first == fit_law(form, x[shuffled], loss[shuffled], replicates=replicates[:, shuffled])


def test_units_of_x_leave_exponent_and_floor() -> None:
    x, loss, _ = _points("offset_power", noise=0.01)
    first, second = (fit_law("offset_power", x * unit, loss, num_bootstrap=20) for unit in (1.0, 1000.0))
    for name in ("E", "beta"):
        one, other = first.parameters[name], second.parameters[name]
        assert asdict(other) == pytest.approx(asdict(one), rel=1e-4)
    factor = 1000 ** first.parameters["beta"].value
    assert second.parameters["B"].value == pytest.approx(first.parameters["B"].value * factor, rel=1e-4)


def test_seed_decides_the_interval() -> None:
    x, loss, _ = _points("power", noise=0.01)
    first, again, other = (fit_law("power", x, loss, num_bootstrap=20, seed=seed) for seed in (1, 1, 2))
    assert first == again and first.parameters != other.parameters


def test_what_the_points_do_not_determine_is_said() -> None:
    x = np.geomspace(1e3, 1e6, 6)
    no_floor = fit_law("offset_power", x, 30 * x**-0.3, num_bootstrap=2)
    assert no_floor.at_bound == ("E",)
    rising = fit_law("power", x, x**0.1, num_bootstrap=2)
    assert rising.at_bound == ("b",) and rising.parameters["b"].value == 0
    flat = fit_law("power", x, np.full(6, 2.0), num_bootstrap=2)
    assert flat.r2 is None and flat.parameters["a"].value == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("form", "x", "reason"),
    [
        ("power", [1, 2], "power needs at least 3 points; there are 2"),
        ("power", [1, 2, 2], "power needs at least 3 distinct values of C; there are 2"),
        ("offset_power", [1, 2, 3], "offset_power needs at least 4 points; there are 3"),
        ("offset_power", [1, 2, 3, 3, 3], "offset_power needs at least 4 distinct values of D; there are 3"),
        ("joint", [[1, 1], [2, 2], [3, 3]], "joint needs at least 6 points; there are 3"),
        (
            "joint",
            [[n, d] for n in (1, 2) for d in (1, 2, 3)],
            "joint needs at least 3 distinct values of N; there are 2",
        ),
        ("joint", [[n, 20 * n] for n in range(1, 8)], "joint needs N and D to vary apart"),
    ],
)
def test_too_few_points_say_so(form: str, x: list, reason: str) -> None:
    fit = fit_law(form, x, np.linspace(3, 2, len(x)))
    assert not fit.fitted and fit.parameters == {} and fit.num_points == len(x)
    assert fit.reason is not None and fit.reason.startswith(reason)
    with pytest.raises(ValueError, match=f"no {form} fit to predict from"):
        predict_loss(fit, x)


def test_table_is_fitted_by_group_and_jointly() -> None:
    table = _table()
    fits = fit_scaling_laws(table, "num_tokens", "loss", "num_params", num_bootstrap=2)
    sizes = [str(size) for size in sorted(table.num_params.unique())]
    assert [(fit.group, fit.form) for fit in fits] == [
        *((size, form) for size in sizes for form in ("power", "offset_power")),
        (None, "joint"),
    ]
    assert all(fit.fitted for fit in fits)
    assert fits[0].variables == {"C": "num_tokens"}
    assert fits[-1].variables == {"N": "num_params", "D": "num_tokens"}
    smallest = JOINT["E"] + JOINT["A"] / 1e7 ** JOINT["alpha"]  # the floor of the smallest size
    assert fits[1].parameters["E"].value == pytest.approx(smallest, rel=1e-3)


def test_table_takes_replicates_by_row_and_any_group() -> None:
    table = _table().assign(family="one").iloc[::-1]
    replicates = table.loss.to_numpy() * np.array([[0.99], [1.0], [1.01]])
    fits = fit_scaling_laws(table, "num_tokens", "loss", group="family", replicates=replicates)
    assert [(fit.group, fit.form, fit.num_points) for fit in fits] == [
        ("one", "power", 16), ("one", "offset_power", 16)
    ]  # fmt: skip
    estimate = fits[0].parameters["b"]
    assert estimate.high - estimate.low < 1e-6
    alone = fit_scaling_laws(table.head(2), "num_tokens", "loss")
    assert [fit.group for fit in alone] == [None, None] and not any(fit.fitted for fit in alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "cubic"}, "form is 'cubic'; known are power, offset_power, joint"),
        ({"form": "joint"}, r"x has shape \(8,\); joint needs 2"),
        ({"loss": np.ones(7)}, r"loss has shape \(7,\)"),
        ({"loss": np.array([1, 1, -1, 1, 1, 1, 1, 1])}, "loss is -1.0 at row 2"),
        ({"x": np.array([1, 2, 3, np.nan, 5, 6, 7, 8])}, "C is nan at row 3"),
        ({"replicates": np.ones((3, 7))}, r"replicates have shape \(3, 7\)"),
        ({"replicates": np.zeros((3, 8))}, "replicate 0 of the loss is 0.0 at row 0"),
        ({"num_bootstrap": 0}, "num_bootstrap is 0"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"level": 95}, "level is 95"),
    ],
)
def test_wrong_input_is_named(options: dict, message: str) -> None:
    x, loss, _ = _points("power")
    with pytest.raises(ValueError, match=message):
        fit_law(**{"form": "power", "x": x, "loss": loss, "num_bootstrap": 2, **options})


def test_command_line_fits_a_published_like_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.csv"
    _table().round({"loss": 3}).to_csv(path, index=False)
    arguments = ["--x", "num_tokens", "--loss", "loss", "--params", "num_params", "--num-bootstrap", "40"]
    assert main([str(path), *arguments]) == 0
    output = capsys.readouterr()
    fits = json.loads(output.out, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
    assert output.err == "" and len(fits) == 4 * 2 + 1
    joint = fits[-1]
    assert joint["form"] == "joint" and joint["fitted"] and joint["num_points"] == 16
    for name in ("E", "alpha", "beta"):
        estimate = joint["parameters"][name]
        assert estimate["value"] == pytest.approx(JOINT[name], rel=0.02)  # three decimals know no better
        assert estimate["low"] < estimate["value"] < estimate["high"]


def test_command_line_writes_json_where_there_is_no_fit(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("flops,loss\n1e15,3.0\n1e16,2.5\n")
    command = [sys.executable, "-m", "fvlm_lib", "scaling", str(path), "--x", "flops", "--loss", "loss"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(scaling.__file__).parents[2])
    assert done.returncode == 0 and done.stderr == ""
    assert [fit["reason"] for fit in json.loads(done.stdout)] == [
        "power needs at least 3 points; there are 2",
        "offset_power needs at least 4 points; there are 2",
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("flops,loss\n1,2\n", ["--x", "steps"], "no column 'steps'; the columns are ['flops', 'loss']"),
        ("flops,loss\n1,2\n2,-1\n", [], "column 'loss' is -1 at row 1"),
        ("flops,loss\n1,2\n2,\n", [], "column 'loss' is nan at row 1"),
        ("flops,loss\n1,2\nmany,1\n", [], "column 'flops' is many at row 1"),
        ("flops,loss,size\n1,2,a\n2,1,\n", ["--group", "size"], "column 'size' is empty at row 1"),
        ("flops,loss\n", [], "has no rows"),
        ("flops,loss\n1,2\n1,2,3,4\n", [], "Error tokenizing data"),
        ("", [], "No columns to parse"),
        (None, [], "No such file"),
        ("flops,loss\n1,3\n2,2\n3,1\n", ["--num-bootstrap", "1"], "num_bootstrap is 1"),
    ],
)
def test_command_line_errors_are_one_sentence(
    text: str | None, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    if text is not None:
        path.write_text(text)
    assert main([str(path), "--x", "flops", "--loss", "loss", *options]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert message in output.err and str(path) in output.err


def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "$ fvlm scaling points.csv --x num_samples" in capsys.readouterr().out


def test_fits_start_without_torch() -> None:
    # The module itself, whatever the package's __init__ imports.
    source = "import sys; before = 'torch' in sys.modules; import fvlm_lib; after = 'torch' in sys.modules\n"
    source += "import fvlm_lib.gap.scaling; sys.exit(not after and 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True, cwd=Path(scaling.__file__).parents[2])
