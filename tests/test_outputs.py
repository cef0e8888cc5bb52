"""What a command leaves is known to be writable before its work, and there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

import pytest
from conftest import disk_of

from fvlm_lib.outputs import check_new_folder, check_output, json_lines, note_replaced, whole


def test_what_can_be_written_is_taken_and_nothing_is_left(tmp_path):
    check_output(tmp_path / "new" / "deep" / "gap.json")
    check_new_folder(tmp_path / "new" / "folder")
    (tmp_path / "old.json").write_text("kept")
    check_output(tmp_path / "old.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "kept"


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"--output .* is a folder; name a file in it"):
        check_output(tmp_path)
    with pytest.raises(ValueError, match=rf"--table {file}/a/b.json cannot be written: {file} is a file, not a folder"):
        check_output(file / "a" / "b.json", "--table")
    with pytest.raises(ValueError, match="--output /dev/null is no regular file"):
        check_output(Path("/dev/null"))
    with pytest.raises(ValueError, match="cannot be written: File name too long"):
        check_output(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match=r"--out .* exists; name a folder that does not"):
        check_new_folder(tmp_path)
    with pytest.raises(ValueError, match=rf"--out {file}/a cannot be written"):
        check_new_folder(file / "a")
    with disk_of(100), pytest.raises(ValueError, match=r"gap.json cannot be written: File too large"):
        check_output(tmp_path / "gap.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_what_is_read_only_is_named(tmp_path):
    file = tmp_path / "old.json"
    file.touch(0o444)
    with pytest.raises(ValueError, match=r"old.json cannot be written: it is read-only"):
        check_output(file)
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match=r"new.json cannot be written: Permission denied"):
        check_output(tmp_path / "new.json")
    tmp_path.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_a_file_system_that_takes_no_files_is_named():
    with pytest.raises(ValueError, match=r"--output /proc/results/gap.json cannot be written: "):
        check_output(Path("/proc/results/gap.json"))


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "gap.json"
    with whole(path) as part:
        part.write_text("first")
    with contextlib.suppress(KeyError), whole(path) as part:
        part.write_text("second")
        raise KeyError
    assert path.read_text() == "first"
    with disk_of(100), pytest.raises(OSError) as raised, whole(path) as part, part.open("w") as file:
        file.write("x" * 10_000)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["gap.json"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    (tmp_path / "model.part").mkdir()  # of one that was killed
    (tmp_path / "model.part" / "old").touch()
    with contextlib.suppress(KeyError), whole(path) as part:
        part.mkdir()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with whole(path) as part:
        part.mkdir()
        (part / "new").touch()
    with whole(path) as part:
        part.mkdir()
        (part / "newer").touch()
    assert [file.name for file in path.iterdir()] == ["newer"]


def test_lines_are_on_disk_at_once_and_names_can_be_read_back(tmp_path):
    path = tmp_path / "sub" / "lines.jsonl"
    name = os.fsdecode(b"\xff \xe2\x82\xac.png")
    with json_lines(path) as write:
        write({"file": name, "text": "a\u2028line · \n \\udcff"})
        assert json.loads(path.read_bytes()) == {"file": name, "text": "a\u2028line · \n \\udcff"}
    with json_lines(path) as write:
        write({"file": "second"})
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
    assert os.fsencode(first["file"]) == b"\xff \xe2\x82\xac.png"
    assert second == {"file": "second"}


def test_a_line_that_the_disk_does_not_take_names_the_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    with disk_of(300), json_lines(path) as write, pytest.raises(OSError) as raised:
        all(write({"frame": number, "text": "x" * 80}) is None for number in range(100))
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text().startswith(json.dumps({"frame": 0, "text": "x" * 80}) + "\n")


def test_what_is_replaced_is_said(tmp_path, capsys):
    (tmp_path / "a").touch()
    note_replaced(tmp_path / "a", tmp_path / "b")
    assert capsys.readouterr().err == f"note: {tmp_path}/a exists and will be replaced\n"
