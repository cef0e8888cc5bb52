"""The table of a study: its sums are those of the gap results, and what is missing is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import exit_code
from studies import TINY_STUDY, write_study

from fvlm_lib.batch.config import gap_arguments
from fvlm_lib.batch.study_config import Study, read_study, read_study_file
from fvlm_lib.batch.study_train import main as study_train
from fvlm_lib.gap.__main__ import main as gap
from fvlm_lib.gap.study_shipping import row_ids, ship
from fvlm_lib.gap.study_table import main, study_table

PLAIN, MULTI, LONGER = "S--plain--3", "S--multi--3", "S--plain--3--6"


def evaluate(study: Study, evaluation: str) -> None:
    """As the workflow's rule does."""
    arguments = gap_arguments(study.gap_parameters(evaluation))
    assert gap([*arguments, "--output", study.result(evaluation)]) == 0


@pytest.fixture(scope="module")
def half_done(tmp_path_factory) -> Path:
    """The config of a study of which one run is evaluated, as on longer videos, one is trained alone, and two are not
    begun."""
    path = write_study(tmp_path_factory.mktemp("study"))
    study = read_study_file(path)
    for run in (PLAIN, MULTI, LONGER):
        assert study_train([str(path), "--run", run]) == 0
    for evaluation in study.evaluations.values():
        if evaluation.run != MULTI and not evaluation.run.startswith("M"):
            evaluate(study, evaluation.id)
    return path


def test_a_row_s_sums_are_those_of_the_gap_s_table_and_its_losses_those_of_the_result(half_done):
    study = read_study_file(half_done)
    table, _ = study_table(study)
    assert table[["size", "recipe", "seed", "step", "num_frames"]].to_numpy().tolist() == [
        ["S", "plain", 3, 2, 4], ["S", "plain", 3, 6, 4], ["S", "plain", 3, 2, 6], ["S", "plain", 3, 6, 6],
    ]  # fmt: skip
    for _, row in table.iterrows():
        path = Path(study.result(f"{PLAIN}--{row['step']}--{row['num_frames']}"))
        result, samples = json.loads(path.read_text()), pq.read_table(path.with_suffix(".parquet")).to_pandas()
        assert row["num_tokens"] == samples["num_tokens"].sum() and row["num_samples"] == len(samples) == 6
        for mode in ("coarse", "fine_1", "fine_2", "autoregressive"):
            assert row[f"nll_{mode}"] == pytest.approx(samples[f"nll_{mode}"].sum(), rel=1e-12)
            assert row[f"loss_{mode}"] == pytest.approx(row[f"nll_{mode}"] / row["num_tokens"], rel=1e-12)
            for end in ("low", "high"):
                assert row[f"loss_{mode}_{end}"] == result["losses"][mode][end]
        for passes in (1, 2):
            assert row[f"gap_fine_{passes}"] == result["gap_to_passes"][f"fine_{passes}"]["value"]
            difference = row["loss_autoregressive"] - row[f"loss_fine_{passes}"]
            assert row[f"gap_fine_{passes}"] == pytest.approx(difference, abs=1e-9)


def test_every_number_of_passes_and_the_jacobian_s_norm_are_of_videos_as_long_as_all_checkpoints_have(half_done):
    study = read_study_file(half_done)
    table = study_table(study)[0].set_index(["step", "num_frames"])
    for step in (2, 6):
        row = table.loc[step, 4]
        found = json.loads(Path(study.result(f"{PLAIN}--{step}--4")).read_text())["jacobi"]
        assert row["query_norm"] == found["jacobian"]["norm"]["value"] > 0
        assert row["query_norm_low"] <= row["query_norm"] <= row["query_norm_high"]
        for passes in (3, 4):  # not among those of num_fine
            assert row[f"gap_fine_{passes}"] == found["passes"][passes - 1]["gap"]["value"]
        assert row["gap_fine_4"] == pytest.approx(0, abs=1e-5)
    longer = table.loc[6, 6]
    assert longer[["query_norm", "gap_fine_3"]].isna().all() and longer[["gap_fine_1", "gap_fine_2"]].notna().all()


def test_a_row_says_what_the_checkpoint_cost_and_which_code_made_it(half_done):
    study = read_study_file(half_done)
    table, _ = study_table(study)
    for _, row in table.iterrows():
        folder = Path(study.run_folder(PLAIN if row["num_frames"] == 4 else LONGER), f"step_{row['step']:04d}")
        about = json.loads((folder / "training.json").read_text())
        for key in ("num_parameters", "num_text_parameters", "training_flops", "seconds_per_step", "library_hash"):
            assert row[key] == about[key]
        assert row["torch"] == row["evaluation_torch"] == about["torch"]
        assert row["commit"] == json.loads(Path(study.record(PLAIN)).read_text())["commit"]
        assert row["learning_rate"] == 0.002
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest().startswith(row["weights_hash"])
        assert len(row["weights_hash"]) == 16
    flops = table.set_index(["step", "num_frames"])["training_flops"]
    assert flops[6, 6] > flops[6, 4] == 3 * flops[2, 4]
    assert (table["trained_passes"] == 1).all()


def test_of_a_study_half_done_the_table_is_written_and_what_is_missing_is_named(half_done, capsys):
    study = read_study_file(half_done)
    assert exit_code(main, half_done) == 1
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"table: {study.table}; 2 of 5 runs and 2 evaluations of others are missing",
        *(f"missing: {MULTI}--{rest}: it is not evaluated" for rest in ("2--4", "6--4")),
        "missing: M--plain--3: it is not trained to its end",
        "missing: M--multi--3: it is not trained to its end",
    ]
    written = pd.read_parquet(study.table)
    pd.testing.assert_frame_equal(written, study_table(study)[0])
    pd.testing.assert_frame_equal(pd.read_csv(study.table_csv, dtype={"trained_passes": "Int64"}), written)


def test_a_cut_study_is_whole_without_what_was_cut(half_done, tmp_path, capsys):
    output = read_study_file(half_done).output
    sizes = {"S": {"text_width": 16, "text_layers": 1, "text_mlp_width": 16, "text_heads": 2, "learning_rate": 0.002}}
    path = write_study(tmp_path, sizes=sizes, recipes={"plain": {}}, lengths=None, output=output)
    assert exit_code(main, path) == 0
    assert capsys.readouterr().out == f"table: {output}/study.parquet\n"


def test_results_of_other_settings_or_of_another_training_are_not_taken(half_done, tmp_path):
    output = read_study_file(half_done).output
    other = study_table(read_study_file(write_study(tmp_path, evaluation={"num_samples": 5}, output=output)))
    assert other[0].empty
    assert "was made with num_samples = 6, the config says 5" in other[1][f"{PLAIN}--2--4"]
    other = study_table(read_study_file(write_study(tmp_path, training={"batch_size": 8}, output=output)))
    assert other[0].empty
    assert "is of a checkpoint with another config than the study has" in other[1][f"{PLAIN}--6--4"]


def test_a_result_and_a_table_of_two_evaluations_are_not_taken(half_done):
    study = read_study_file(half_done)
    first, second = (Path(study.result(f"{PLAIN}--{rest}")).with_suffix(".parquet") for rest in ("2--4", "6--4"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    try:
        table, missing = study_table(study)
    finally:
        first.write_bytes(kept)
    assert len(table) == 3
    assert missing[f"{PLAIN}--2--4"].endswith("the table beside it are of two evaluations; remove both")


# ---- shipped -------------------------------------------------------------------------------------------


def test_what_is_shipped_has_the_table_and_the_sums_of_samples_as_long_as_those_of_the_training(
    half_done, tmp_path, capsys
):
    study = read_study_file(half_done)
    assert exit_code(main, half_done, "--ship", tmp_path) == 1
    assert f"shipped: {tmp_path}, 4 rows, 0 of them as they were there\n" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "study.parquet")
    pd.testing.assert_frame_equal(table, study_table(study)[0])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "study.csv", dtype={"trained_passes": "Int64"}), table)
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert len(samples) == 2 * 6
    for step, rows in samples.groupby("step"):
        assert rows[["size", "recipe", "seed"]].drop_duplicates().to_numpy().tolist() == [["S", "plain", 3]]
        row = table[(table["step"] == step) & (table["num_frames"] == 4)].iloc[0]
        for mode in ("coarse", "fine_1", "fine_2", "autoregressive"):
            assert rows[f"nll_{mode}"].dtype == "float32"
            assert rows[f"nll_{mode}"].astype(float).sum() == pytest.approx(row[f"nll_{mode}"], rel=1e-6)
        assert rows["num_tokens"].sum() == row["num_tokens"]


def test_a_study_is_shipped_in_parts_and_in_its_own_order(half_done, tmp_path):
    study = read_study_file(half_done)
    multi = "S--multi--3--2--4"
    evaluate(study, multi)
    table, _ = study_table(study)
    plain = table[table["recipe"] == "plain"]
    whole = ship(study, table, tmp_path / "whole")
    assert row_ids(whole).tolist() == [f"{PLAIN}--2--4", f"{PLAIN}--6--4", multi, f"{PLAIN}--2--6", f"{PLAIN}--6--6"]
    ship(study, table[table["recipe"] == "multi"], tmp_path / "parts")
    pd.testing.assert_frame_equal(ship(study, plain, tmp_path / "parts"), whole)
    for name in ("study.parquet", "samples.parquet"):
        parts, at_once = (pd.read_parquet(tmp_path / where / name) for where in ("parts", "whole"))
        pd.testing.assert_frame_equal(parts, at_once)

    ship(study, table[table["num_frames"] == 4], tmp_path / "parts")  # of checkpoints whose other rows are kept
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "parts" / "samples.parquet"), at_once)

    other = read_study_file(write_study(tmp_path, training={"batch_size": 8}, output=study.output))
    with pytest.raises(ValueError, match=r"parts/study.parquet has the row S--plain--3--2--4, which is of another"):
        ship(other, plain, tmp_path / "parts")
    (tmp_path / "parts" / "samples.parquet").unlink()
    with pytest.raises(ValueError, match=r"parts/samples.parquet is missing, .* remove .*study.parquet"):
        ship(study, plain, tmp_path / "parts")
    for end in ("json", "parquet"):  # as it was
        Path(study.result(multi)).with_suffix(f".{end}").unlink()


def test_made_by_tells_trainings_and_evaluations_apart_and_not_where_they_are_kept():
    id = f"{PLAIN}--6--4"
    made_by = {
        name: read_study(TINY_STUDY | change).made_by(id)
        for name, change in {
            "same": {},
            "kept elsewhere": {"output": "results/other"},
            "more seeds": {"seeds": [3, 4]},
            "longer": {"training": TINY_STUDY["training"] | {"warmup_steps": 3}},
            "fewer": {"evaluation": TINY_STUDY["evaluation"] | {"num_samples": 5}},
        }.items()
    }
    assert made_by["same"] == made_by["kept elsewhere"] == made_by["more seeds"]
    assert len(set(made_by.values())) == 3


def test_a_study_without_a_result_is_refused(tmp_path, capsys):
    path = write_study(tmp_path)
    assert exit_code(main, path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"no result of the study in {tmp_path / 'study'} yet; {PLAIN}: it is not" in said
    assert not (tmp_path / "study").exists()
