"""`fvlm` runs each command by name, and says what there is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from fvlm_lib.__main__ import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_teaches_its_arguments(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and "example" in printed
    assert printed.startswith(f"usage: {'fvlm-predict' if command == 'predict' else f'fvlm {command}'} ")


def test_help_does_not_wait_for_what_is_heavy():
    """Importing torch alone takes seconds; commands print their help, and refuse options, without it."""
    code = f"""if True:
        import contextlib, io, sys
        from fvlm_lib.__main__ import main
        for command in {[*COMMANDS]}:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                main([command, "--help"])
            print(command, *({{"torch", "transformers"}} & {{*sys.modules}}))
    """
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.splitlines() == [*COMMANDS]


def test_help_lists_the_commands_and_a_wrong_name_is_refused(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)
    assert main([]) == 2 and main(["gaps"]) == 2
    assert "there is no command 'gaps'; there are gap, scaling" in capsys.readouterr().err


def test_the_module_and_its_command_are_one(tmp_path):
    for module in (["fvlm_lib", "gap"], ["fvlm_lib.gap"]):
        done = subprocess.run([sys.executable, "-m", *module, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.startswith("usage: fvlm gap "), done.stderr


@pytest.mark.parametrize(
    ("module", "usage"),
    {
        "foveated.train": "fvlm train",
        "foveated.bench": "fvlm bench-stream",
        "gap.gap": "fvlm gap",
        "screens.measure": "fvlm bench-policies",
        "vlm.bench": "fvlm-predict",
    }.items(),
)
def test_a_module_whose_command_is_in_another_one_points_to_it(module, usage):
    command = [sys.executable, "-X", "importtime", "-m", f"fvlm_lib.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith(f"usage: {usage} ")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and "torch" not in imported
