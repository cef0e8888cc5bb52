"""Commands with options that cannot be: every number out of its range, outputs that cannot be written, contradictions.

Numbers are refused before anything is read, so the files that the commands name need not be there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from conftest import DEMO, ROOT, disk_of

from corpus import Case, Said, command
from fvlm_lib.__main__ import COMMANDS

CHECKPOINT, SCREENS = DEMO / "S-S" / "step_0100", ROOT / "data" / "screens"
TINY = "random:clip-tiny"


def asked(name: str, *arguments: object) -> Callable[[Path], Said]:
    """Runs a command; FOLDER in its arguments is the case's own folder."""

    def run(folder: Path) -> Said:
        main = import_module(f"fvlm_lib.{COMMANDS[name][0]}").main
        return command(main, *(str(argument).replace("FOLDER", str(folder)) for argument in arguments))

    return run


# ---- numbers -----------------------------------------------------------------------------------------

# value, and what is said of it
WHOLE = {"1.5": "must be a whole number", "nan": "must be a whole number", "inf": "must be a whole number",
         "many": "must be a whole number", "": "must be a whole number", "9" * 20: "must be at most",
         "9" * 5000: "must be a whole number"}  # fmt: skip
FROM_0 = {"-1": "must be at least 0", **WHOLE}
FROM_1 = {"0": "must be at least 1", "-1": "must be at least 1", **WHOLE}
FROM_2 = {"0": "must be at least 2", "1": "must be at least 2", "-1": "must be at least 2", **WHOLE}
NUMBER = {"nan": "it must be ", "inf": "it must be ", "much": "must be a number"}
AT_LEAST_0 = {"-0.1": "must be at least 0", **NUMBER}
ABOVE_0 = {"0": "must be above 0", "-1": "must be above 0", **NUMBER}
UP_TO_1 = {"1.5": "must be at most 1", **AT_LEAST_0}
DEVICE = {"bogus": "must be auto, cpu, cuda, cuda:N or mps", "cuda:x": "must be auto", "": "must be auto"}

NEEDED = {
    "gap": ["--checkpoint", "nowhere", "--output", "FOLDER/gap.json"],
    "scaling": ["nowhere.csv", "--x", "n", "--loss", "loss"],
    "record": ["--out", "FOLDER/new"],
    "assemble": ["--text", "nowhere", "--vision", "nowhere", "--out", "FOLDER/new"],
    "assemble-llava": ["--text", "nowhere", "--vision", "nowhere", "--out", "FOLDER/new"],
    "train": ["nowhere.yaml", "--run", "a", "--out", "FOLDER/new"],
    "bench": ["--checkpoint", "nowhere"],
    "bench-stream": ["--checkpoint", "nowhere"],
    "watch": ["--checkpoint", "nowhere", "--source", "nowhere"],
    "bench-policies": ["nowhere", "--tower", "nowhere"],
    "bench-updates": ["--tower", "nowhere"],
    "bench-panel": ["--folder", "nowhere"],
    "predict": ["--model", "nowhere", "--image-dir", "nowhere"],
    "text": ["--model", "nowhere", "--stream", "nowhere"],
    "bench-prefill": ["--model", "nowhere"],
    "bench-answers": ["--model", "nowhere"],
    "train-reader": ["--out", "FOLDER/new"],
}
NUMBERS = {
    "gap": {"num-samples": FROM_2, "batch-size": FROM_1, "num-fine": FROM_1, "floor-samples": FROM_0, "seed": FROM_0,
            "within": ABOVE_0, "within-query": ABOVE_0, "norm-samples": FROM_0,
            "device": DEVICE, "shard": {"5/4": "must be K/N", "0/4": "must be K/N", "1": "must be K/N",
            "1/2/3": "must be K/N", "-1/4": "must be K/N", "": "must be K/N"}},
    "scaling": {"block-length": FROM_1, "delta": ABOVE_0, "num-bootstrap": FROM_2, "seed": FROM_0,
                "level": {"0": "must be above 0", "1": "must be below 1", "95": "must be below 1", **NUMBER}},
    "record": {"seconds": ABOVE_0 | {"1e300": "must be at most 604800"}, "fps": ABOVE_0 | {"1e6": "must be at most"},
               "monitor": FROM_0},
    "assemble": {"query-dim": FROM_1, "image-size": FROM_1, "visual-scale": ABOVE_0, "seed": FROM_0},
    "assemble-llava": {"seed": FROM_0},
    "train": {"seed": FROM_0, "threads": FROM_1, "device": DEVICE},
    "bench": {"batch-size": FROM_1, "num-frames": FROM_1, "num-tokens": FROM_1, "repeats": FROM_1, "warmup": FROM_0,
              "threads": FROM_1 | {"100000": "must be at most 1024"}, "device": DEVICE},
    "bench-stream": {"shares": UP_TO_1, "repeats": FROM_1, "warmup": FROM_0, "frames": FROM_1, "threads": FROM_1,
                     "fps": ABOVE_0 | {"1e6": "must be at most"}, "device": DEVICE},
    "watch": {"fps": ABOVE_0 | {"1e6": "must be at most"}, "seconds": ABOVE_0 | {"1e300": "must be at most 604800"},
              "frames": FROM_1, "caption-every": AT_LEAST_0, "max-new-tokens": FROM_1, "max-frames": FROM_2,
              "threads": FROM_1, "device": DEVICE},
    "bench-policies": {"tolerances": AT_LEAST_0, "max-rows": FROM_1, "frames": FROM_1, "threads": FROM_1},
    "bench-updates": {"counts": FROM_1, "gated": FROM_1, "tolerance": AT_LEAST_0, "repeats": FROM_1, "warmup": FROM_0,
                      "threads": FROM_1},
    "bench-panel": {"repeats": FROM_1, "warmup": FROM_0},
    "predict": {"sequence-limit": FROM_1, "max-new-tokens": FROM_1, "min-new-tokens": FROM_0, "num-beams": FROM_1,
                "temperature": AT_LEAST_0, "top-p": {"0": "must be above 0", "2": "must be at most 1", **NUMBER},
                "seed": FROM_0, "diff-threshold": UP_TO_1, "diff-max-changed-patches": FROM_0,
                "diff-patch-size": FROM_1, "diff-tolerance": AT_LEAST_0, "diff-max-rows": FROM_1,
                "prefill-tolerance": AT_LEAST_0, "check-every": FROM_1, "max-kl": AT_LEAST_0,
                "device": DEVICE},
    "text": {"prefill-tolerance": AT_LEAST_0, "max-new-tokens": FROM_1, "temperature": AT_LEAST_0, "num-beams": FROM_1,
             "seed": FROM_0, "check-every": FROM_1, "max-kl": AT_LEAST_0, "device": DEVICE},
    "bench-answers": {"screens": FROM_1, "tolerances": AT_LEAST_0, "seed": FROM_0, "threads": FROM_1},
    "train-reader": {"minutes": ABOVE_0, "batch-size": FROM_1, "rate": ABOVE_0, "test-screens": FROM_1, "seed": FROM_0,
                     "threads": FROM_1},
    "bench-prefill": {"screens": FROM_1, "lines": FROM_1, "tolerances": AT_LEAST_0, "seed": FROM_0, "threads": FROM_1},
}  # fmt: skip


def numbers() -> Iterator[Case]:
    """Every value that a number cannot have, of every command."""
    for name, options in NUMBERS.items():
        for option, values in options.items():
            for value, says in values.items():
                # by =, as -0.1 would do but not every parser takes -inf for a number
                run = asked(name, *NEEDED[name], f"--{option}={value}")
                called = value if len(value) <= 20 else f"{len(value)} digits"
                yield Case(f"{name} --{option} {called!r}", run, says, f"--{option} is ")


# ---- arguments ---------------------------------------------------------------------------------------


def arguments() -> Iterator[Case]:
    """Options that there are not, or that are missing."""
    for name, needed in NEEDED.items():
        run = asked(name, *needed, "--bogus", "1")
        yield Case(f"{name} with an option that it has not", run, "there is no option", "--bogus")
        yield Case(f"{name} with an argument too many", asked(name, *needed, "more"), "more", "one argument too many")
    for name in sorted(NEEDED.keys() - {"bench-updates", "bench-panel"}):
        yield Case(f"{name} without arguments", asked(name), "the following arguments are required")
    run = asked("bench", *NEEDED["bench"], "--repets", "3")
    yield Case("bench --repets", run, "did you mean --repeats?", "there is no option --repets")


# ---- outputs -----------------------------------------------------------------------------------------

FILES = {
    "gap": ["--checkpoint", CHECKPOINT, "--num-samples", "4", "--output"],
    "bench-policies": [SCREENS / "idle", "--tower", TINY, "--output"],
    "predict": ["--model", "nowhere", "--image-dir", SCREENS / "idle", "--output"],
    "run": [ROOT / "notebooks" / "gap_analysis.ipynb", "--output"],
}
ENDING = {"gap": "json", "bench-policies": "parquet", "predict": "jsonl", "run": "ipynb"}
FOLDERS = {
    "assemble": ["--text", "nowhere", "--vision", "nowhere", "--out"],
    "assemble-llava": ["--text", "nowhere", "--vision", "nowhere", "--out"],
    "train": [ROOT / "config" / "ladder.yaml", "--run", "S-S", "--out"],
    "record": ["--out"],
}


def below_a_file(run: Callable[[Path], Said]) -> Callable[[Path], Said]:
    def made(folder: Path) -> Said:
        (folder / "file").write_text("kept")
        said = run(folder)
        assert (folder / "file").read_text() == "kept"
        return said

    return made


def on_a_full_disk(run: Callable[[Path], Said]) -> Callable[[Path], Said]:
    def full(folder: Path) -> Said:
        with disk_of(10_000):
            said = run(folder)
        assert not list(folder.iterdir())
        return said

    return full


def outputs() -> Iterator[Case]:
    """Where nothing can be written, or what is there would be lost."""
    for name, needed in FILES.items():
        file = f"out.{ENDING[name]}"
        yield Case(f"{name} into a folder", into_a_folder(name, needed, file), "is a folder", f"--output FOLDER/{file}")
        below = below_a_file(asked(name, *needed, f"FOLDER/file/{file}"))
        yield Case(f"{name} below a file", below, "file is a file, not a folder", file)
        full = on_a_full_disk(asked(name, *needed, f"FOLDER/{file}"))
        yield Case(f"{name} on a full disk", full, "cannot be written: File too large", file)
        long = asked(name, *needed, f"FOLDER/{'x' * 300}.{ENDING[name]}")
        yield Case(f"{name} of too long a name", long, "File name too long", "--output")
    for name, needed in FOLDERS.items():
        yield Case(
            f"{name} below a file", below_a_file(asked(name, *needed, "FOLDER/file/new")), "is a file, not a folder"
        )
        full = on_a_full_disk(asked(name, *needed, "FOLDER/new"))
        yield Case(f"{name} on a full disk", full, "cannot be written: File too large", "--out")
    for name in ("assemble", "assemble-llava"):
        exists = asked(name, *FOLDERS[name], "FOLDER")
        yield Case(f"{name} into a folder that exists", exists, "exists; name a folder that does not", "--out")
    yield Case("train into a folder of something else", train_over, "is not a training run", "choose another --out")
    gap = FILES["gap"]
    table = asked("gap", *gap, "FOLDER/out.parquet")
    yield Case("gap into its own table", table, "its own table would replace", "--output is ")
    yield Case("gap over a table of something else", table_of_others, "is no table of a gap", "mine.parquet")
    shard = asked("gap", *gap, "FOLDER/out.json", "--shard", "1/2")
    yield Case("gap --shard into JSON", shard, "must end in .parquet", "out.json")
    csv = asked("bench-policies", *FILES["bench-policies"], "FOLDER/a.csv")
    yield Case("bench-policies into CSV", csv, "must end in .parquet", "a.csv")
    yield Case("predict over an output", predict_over, "exists; go on with it by --resume", "old.jsonl")
    yield Case("run into HTML", asked("run", *FILES["run"], "FOLDER/a.html"), "must be another .ipynb file", "a.html")
    same = asked("run", ROOT / "notebooks" / "gap_analysis.ipynb", "--output", ROOT / "notebooks/gap_analysis.ipynb")
    yield Case("run over its notebook", same, "must be another .ipynb file", "gap_analysis.ipynb")


def into_a_folder(name: str, needed: list[object], file: str) -> Callable[[Path], Said]:
    def run(folder: Path) -> Said:
        (folder / file).mkdir()
        said = asked(name, *needed, f"FOLDER/{file}")(folder)
        return Said(said.code, said.stderr.replace(str(folder), "FOLDER"))

    return run


def train_over(folder: Path) -> Said:
    (folder / "mine").touch()
    return asked("train", *FOLDERS["train"], "FOLDER")(folder)


def table_of_others(folder: Path) -> Said:
    (folder / "mine.parquet").write_bytes(b"no Parquet at all")
    said = asked("gap", *FILES["gap"], "FOLDER/mine.json")(folder)
    assert (folder / "mine.parquet").read_bytes() == b"no Parquet at all"
    return said


def predict_over(folder: Path) -> Said:
    (folder / "old.jsonl").write_text("kept\n")
    said = asked("predict", *FILES["predict"], "FOLDER/old.jsonl")(folder)
    assert (folder / "old.jsonl").read_text() == "kept\n"
    return said


# ---- contradictions, and what only a model or a file tells -------------------------------------------


def screens(folder: Path, frames: int) -> Path:
    """A recording of so many frames."""
    (folder / "frames").mkdir()
    for number in range(frames):
        shutil.copy(SCREENS / "idle" / f"frame_{number:04d}.png", folder / "frames")
    return folder / "frames"


def findings_of_nothing(folder: Path) -> Said:
    (folder / "mine.yaml").write_text("checkpoints: {a: b, c: d}\ngap: {data: {kind: procedural}}\n")
    return asked("findings", "FOLDER/mine.yaml")(folder)


def train_of(settings: str) -> Callable[[Path], Said]:
    def run(folder: Path) -> Said:
        (folder / "ladder.yaml").write_text(f"runs:\n  mine:\n    {settings}\n")
        return asked("train", "FOLDER/ladder.yaml", "--run", "mine", "--out", "FOLDER/new")(folder)

    return run


def assemble_of_nothing(folder: Path) -> Said:
    (folder / "empty").mkdir()
    parts = ["--text", "FOLDER/empty", "--vision", "random:dinov2-small", "--out", "FOLDER/new"]
    return asked("assemble", *parts)(folder)


PREDICT = NEEDED["predict"]
CASES = [
    *numbers(),
    *arguments(),
    *outputs(),
    Case(
        "gap twice by one pass", asked("gap", *NEEDED["gap"], "--num-fine", "1", "2", "1"), "has 1 twice", "--num-fine"
    ),
    Case("gap --data of no YAML", asked("gap", *NEEDED["gap"], "--data", "{"), "cannot be read as YAML", "--data"),
    Case("gap --data of a list", asked("gap", *NEEDED["gap"], "--data", "[1]"), "must be a mapping", "--data"),
    Case("gap --within alone", asked("gap", *NEEDED["gap"], "--within", "1"), "which is not there", "--within is of"),
    Case(
        "gap --jacobi of a part",
        asked("gap", "--checkpoint", "nowhere", "--output", "FOLDER/a.parquet", "--jacobi", "--shard", "1/2"),
        "give one of them",
    ),
    Case("gap --dtype", asked("gap", *NEEDED["gap"], "--dtype", "int8"), "invalid choice", "--dtype"),
    Case("gap without a checkpoint", asked("gap", *NEEDED["gap"]), "no checkpoint folder nowhere"),
    Case(
        "bench of a caption beyond the context",
        asked("bench", "--checkpoint", CHECKPOINT, "--num-tokens", "100000"),
        "take 100008 positions; the language model of",
        "has 256",
    ),
    Case("bench without a checkpoint", asked("bench", *NEEDED["bench"]), "nowhere"),
    Case(
        "bench-updates of more patches than there are",
        asked("bench-updates", "--tower", TINY, "--counts", "257"),
        "257 patches cannot change; the tower has 256",
    ),
    Case("bench-updates of no tower", asked("bench-updates", "--tower", "random:none"), "there is no random:none"),
    Case(
        "bench-policies of one frame",
        lambda folder: asked("bench-policies", screens(folder, 1), "--tower", TINY)(folder),
        "gives 1 frame",
    ),
    Case("bench-policies of no folder", asked("bench-policies", "nowhere", "--tower", TINY), "no such file", "nowhere"),
    Case("bench-panel of no folder", asked("bench-panel", "--folder", "nowhere"), "nowhere"),
    Case("bench-panel --patch-size", asked("bench-panel", "--patch-size", "0"), "--patch-size"),
    Case("changes of nothing", asked("changes", "nowhere"), "no such file", "nowhere"),
    Case("changes of an empty folder", asked("changes", "FOLDER"), "has no images"),
    Case("report of no config", asked("report", "nowhere.yaml"), "nowhere.yaml"),
    Case("report of a folder", asked("report", "FOLDER"), "Is a directory"),
    Case("findings of no config", asked("findings", "nowhere.yaml"), "there is no file nowhere.yaml"),
    Case("findings of no batch", findings_of_nothing, "is missing", "findings.md"),
    Case("train of an unknown field", train_of("steps: 10\n    stepss: 3"), "did you mean 'steps'?", "ladder.yaml"),
    Case("train of no number", train_of("batch_size: many"), "batch_size is 'many'", "ladder.yaml"),
    Case("train of no steps", train_of("steps: 0"), "steps is 0; it must be at least 1", "ladder.yaml"),
    Case("train at no rate", train_of("learning_rate: .nan"), "learning_rate is nan", "ladder.yaml"),
    Case("train on a grid that cannot be", train_of("videos: {grid: 0}"), "videos: grid is 0", "ladder.yaml"),
    Case("scaling of no table", asked("scaling", *NEEDED["scaling"]), "No such file", "nowhere.csv"),
    Case("scaling of a folder", asked("scaling", "FOLDER", "--x", "n", "--loss", "l"), "Is a directory"),
    Case("assemble of an empty folder", assemble_of_nothing, "is no language model", "empty"),
    Case(
        "assemble of no GGUF",
        asked("assemble", "--text", "a.gguf", "--vision", "random:dinov2-small", "--out", "FOLDER/a"),
        "there is no GGUF file a.gguf",
    ),
    Case(
        "assemble of an unknown norm",
        asked("assemble", *NEEDED["assemble"], "--visual-norm", "none"),
        "invalid choice",
        "--visual-norm",
    ),
    Case(
        "assemble-llava of no tower",
        asked("assemble-llava", "--text", "random:llama-tiny", "--vision", "random:no", "--out", "FOLDER/a"),
        "there is no random:no",
    ),
    Case("train of no config", asked("train", *NEEDED["train"]), "nowhere.yaml"),
    Case(
        "train of no such run", asked("train", *FOLDERS["train"][:2], "X-X", "--out", "FOLDER/new"), "has no run 'X-X'"
    ),
    Case(
        "run of no notebook",
        asked("run", "nowhere.ipynb", "--output", "FOLDER/a.ipynb"),
        "there is no notebook nowhere.ipynb",
    ),
    Case("run without arguments", asked("run"), "give a notebook and its --output"),
    Case(
        "run of parameters that are a list",
        asked("run", *FILES["run"], "FOLDER/a.ipynb", "--parameters", "[1]"),
        "must be a JSON object",
        "--parameters",
    ),
    Case(
        "run of parameters that are no JSON",
        asked("run", *FILES["run"], "FOLDER/a.ipynb", "--parameters", "{"),
        "must be a JSON object or @FILE",
        "--parameters",
    ),
    Case(
        "run of parameters in no file",
        asked("run", *FILES["run"], "FOLDER/a.ipynb", "--parameters", "@no.json"),
        "no.json",
        "--parameters",
    ),
    Case(
        "run of an unknown parameter",
        asked("run", *FILES["run"], "FOLDER/a.ipynb", "--parameters", '{"sed": 1}'),
        "'sed'",
    ),
    Case("run --report of no folder", asked("run", "--report", "nowhere"), "there is no folder nowhere"),
    Case("predict of nothing", asked("predict", "--model", "nowhere"), "one of the arguments --image"),
    Case(
        "predict of two kinds of frames", asked("predict", *PREDICT, "--image", "a.png"), "not allowed with", "--image"
    ),
    Case(
        "predict: less than nothing",
        asked("predict", *PREDICT, "--min-new-tokens", "33"),
        "--min-new-tokens is 33, above --max-new-tokens 32",
    ),
    Case(
        "predict greedily, of a share",
        asked("predict", *PREDICT, "--top-p", "0.5"),
        "contradict each other",
        "--temperature 0 and --top-p",
    ),
    Case(
        "predict without and with settings",
        asked("predict", *PREDICT, "--disable-differential", "--diff-tolerance", "0"),
        "contradict each other",
        "--diff-tolerance",
    ),
    Case(
        "predict ungated with a tolerance",
        asked("predict", *PREDICT, "--diff-propagate", "none", "--diff-tolerance", "0"),
        "contradict each other",
        "--diff-tolerance",
    ),
    Case(
        "predict: a tolerance of an exact prefill",
        asked("predict", *PREDICT, "--prefill", "exact", "--prefill-tolerance", "0.1"),
        "contradict each other",
        "--prefill exact and --prefill-tolerance",
    ),
    Case(
        "predict: a prefill by two names",
        asked("predict", *PREDICT, "--disable-prefix-reuse", "--prefill", "gated"),
        "not allowed with argument",
        "--prefill",
    ),
    Case(
        "predict: allowed without a check",
        asked("predict", *PREDICT, "--max-kl", "0.1"),
        "add --check-every",
        "--max-kl",
    ),
    Case(
        "predict: a benchmark with checks",
        asked("predict", *PREDICT, "--check-every", "2", "--benchmark"),
        "contradict each other",
        "--check-every and --benchmark",
    ),
    Case(
        "predict: a calibration to no end",
        asked("predict", *PREDICT, "--calibrate"),
        "--calibrate needs --max-kl",
        "such as 0.01",
    ),
    Case(
        "predict: a calibration of what is set",
        asked("predict", *PREDICT, "--calibrate", "--max-kl", "0.01", "--diff-tolerance", "0.1"),
        "contradict each other",
        "--calibrate and --diff-tolerance",
    ),
    Case(
        "predict: a calibration of one frame",
        asked(
            "predict",
            "--model",
            "nowhere",
            "--image",
            SCREENS / "idle" / "frame_0000.png",
            "--calibrate",
            "--max-kl",
            "0.01",
        ),
        "at least two frames",
        "a calibration needs",
    ),
    Case(
        "predict: settings to a folder",
        asked("predict", *PREDICT, "--calibrate", "--max-kl", "0.01", "--calibrate-output", "FOLDER"),
        "is a folder",
        "--calibrate-output",
    ),
    Case(
        "predict: settings of no calibration",
        asked("predict", *PREDICT, "--calibrate-output", "FOLDER/a.yaml"),
        "is of --calibrate; add it",
        "--calibrate-output",
    ),
    Case("predict --prefill", asked("predict", *PREDICT, "--prefill", "some"), "invalid choice", "--prefill"),
    Case("predict --resume of nothing", asked("predict", *PREDICT, "--resume"), "--resume needs --output"),
    Case(
        "predict --resume of a benchmark",
        asked("predict", *PREDICT, "--resume", "--benchmark", "--output", "FOLDER/a"),
        "contradict each other",
        "--benchmark",
    ),
    Case(
        "predict: a benchmark of bad images",
        asked("predict", *PREDICT, "--skip-bad", "--benchmark"),
        "contradict each other",
        "--skip-bad",
    ),
    Case(
        "predict: a limit of one sequence",
        asked("predict", *PREDICT, "--sequence-limit", "2"),
        "contradict each other",
        "--sequence-limit",
    ),
    Case("predict --dtype", asked("predict", *PREDICT, "--dtype", "int4"), "invalid choice", "--dtype"),
    Case("predict --fit", asked("predict", *PREDICT, "--fit", "crop"), "invalid choice", "--fit"),
    Case(
        "predict by no model",
        asked("predict", "--model", "nowhere", "--image-dir", SCREENS / "idle"),
        "there is no folder nowhere",
    ),
    Case("predict of no folder", asked("predict", *PREDICT), "nowhere"),
]
