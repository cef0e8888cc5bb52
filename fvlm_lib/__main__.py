"""`fvlm COMMAND`: the library's commands by name; also `python -m fvlm_lib COMMAND`.

A command is the `main` of the module that has its subject; only that module is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from fvlm_lib.batch.processes import end_with_batch

COMMANDS = {
    "gap": ("gap.__main__", "measure the train/inference gap of a foveated checkpoint"),
    "scaling": ("gap.scaling", "fit scaling laws to a table of points"),
    "report": ("gap.report", "print the gap table of a batch"),
    "findings": ("gap.findings", "print the findings of a batch, or put them into a Markdown file"),
    "predict": ("vlm.predict", "ask a vision-language model about every frame (also fvlm-predict)"),
    "record": ("data.record", "record a screen"),
    "changes": ("data.screens", "count the frames of recordings that changed"),
    "assemble": ("foveated.assemble", "make an untrained foveated checkpoint of a language model and a vision tower"),
    "assemble-llava": ("vlm.assemble", "make a LLaVA of a language model and a vision tower, for times"),
    "train": ("foveated.train_command", "train a run of the demo ladder"),
    "train-reader": ("vlm.train_reader", "train the small LLaVA that reads drawn screens"),
    "batch": ("batch.launch", "run the batch of a config, as `bash run.sh` does"),
    "study": ("batch.study_launch", "train and evaluate the runs of a study, as `bash run.sh study` does"),
    "study-train": ("batch.study_train", "train one run of a study"),
    "study-table": ("gap.study_table", "make the table of a study from what is there"),
    "study-report": ("gap.study_report", "print what a study says, from its table"),
    "schema": ("batch.schema_files", "write the JSON Schemas of the config files, for editors"),
    "run": ("batch.runs", "execute one notebook with papermill, or report on runs"),
    "watch": ("foveated.watch_command", "watch a screen, a window or a recording, and say what is seen"),
    "bench": ("gap.bench", "time all modes on one shared vision encode"),
    "bench-stream": ("vlm.stream_bench", "time the frames of a foveated stream by how much of them changed"),
    "bench-policies": ("screens.policy_bench", "time encoding policies on a recording, and how wrong they are"),
    "text": ("vlm.text", "ask a language model about every screen of a text stream"),
    "bench-prefill": ("vlm.prefill_bench", "measure policies of prefill on text screens that change"),
    "bench-answers": ("vlm.reader_bench", "count right and stale answers about screens that change, by what is kept"),
    "plan": ("vlm.plan_command", "tell what to expect of a model, from its config alone"),
    "bench-updates": ("screens.update_bench", "time partial updates by number of changed patches"),
    "bench-panel": ("panels.bench", "time the redraw of the tuning panel"),
}


def help_text() -> str:
    """What `fvlm --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: fvlm COMMAND [arguments]", "", *lines, "", "fvlm COMMAND --help tells a command's arguments."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 2 for a name that is none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"fvlm: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    end_with_batch()
    return import_module(f"fvlm_lib.{COMMANDS[name][0]}").main(rest)


def run_as(command: str) -> NoReturn:
    """What `python -m` of a module does whose command is in another one, `train` say of `foveated.train`."""
    sys.exit(main([command, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
