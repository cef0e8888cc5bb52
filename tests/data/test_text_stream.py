"""Streams of text, read from JSON lines; the recorded one."""

from __future__ import annotations

import itertools
import json

import pytest
from conftest import ROOT

from fvlm_lib.data.text_stream import read_text_stream

TERMINAL = ROOT / "data" / "text" / "terminal.jsonl"


def test_texts_are_read_in_order_whatever_is_in_them(tmp_path):
    texts = ["a\nb", "", "\u2028 between \x85 lines", "ü 漢 😀", '{"text": "x"}']
    file = tmp_path / "s.jsonl"
    lines = [json.dumps({"text": text, "time": i}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    file.write_text("\n\n" + "\n".join(lines), encoding="utf-8")  # no end of line behind the last
    assert read_text_stream(file) == read_text_stream(str(file)) == texts


def test_ends_of_lines_may_be_those_of_windows(tmp_path):
    (tmp_path / "s.jsonl").write_bytes(b'{"text": "a"}\r\n{"text": "b"}\r\n')
    assert read_text_stream(tmp_path / "s.jsonl") == ["a", "b"]


LIKE = r'must be like \{"text": "what was on the screen"\}$'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r's\.jsonl holds no text; it must have an object a line like \{"text": "what was on the screen"\}$'),
        (b" \n\n", r"s\.jsonl holds no text; "),
        (b'{"text": "a"}\nhello\n', r"s\.jsonl, line 2 is not valid JSON \(Expecting value"),
        (b'{"text": "a"', r"s\.jsonl, line 1 is not valid JSON"),
        (b'{"text": "a"}{"text": "b"}', r"s\.jsonl, line 1 is not valid JSON \(Extra data"),
        (b'{\n"text": "a"}', r"s\.jsonl, line 1 is not valid JSON"),
        (b'["a"]', r"s\.jsonl, line 1 holds a list; it must hold a JSON object"),
        (b'"a"', r"s\.jsonl, line 1 holds a text; it must hold a JSON object"),
        (b"{}", r"s\.jsonl, line 1 has no text; it " + LIKE),
        (b'{"text": "a"}\n\n{"Text": "b"}', r"s\.jsonl, line 3 has no text; it " + LIKE),
        (b'{"text": null}', r"s\.jsonl, line 1: its text is null, must be a text"),
        (b'{"text": ["a", "b"]}', r"s\.jsonl, line 1: its text is a list, must be a text"),
        (b'{"text": 3}', r"s\.jsonl, line 1: its text is a number, must be a text"),
        (
            b'{"text": "a", "text": "b"}',
            r"s\.jsonl, line 1 has the key 'text' twice; an object must have each key once$",
        ),
        (b'{"text": "a", "x": {"y": 1, "y": 2}}', r"s\.jsonl, line 1 has the key 'y' twice"),
        (b'{"text": "\\ud83d"}', r"s\.jsonl, line 1: its text has half of a surrogate pair"),
        (b'{"text": "\xff"}', r"s\.jsonl is not UTF-8 text \(invalid start byte at byte 10\)$"),
        (b"\xff\xfe{\0", r"s\.jsonl is not UTF-8 text"),
        (b"[" * 100_000, r"s\.jsonl, line 1 is not valid JSON \(it is nested too deeply\)"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, content, message):
    (tmp_path / "s.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text_stream(tmp_path / "s.jsonl")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^there is no file .*none\.jsonl$"):
        read_text_stream(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"is a folder; it must be a file of JSON lines"):
        read_text_stream(tmp_path)


def test_the_recording_is_a_terminal_that_changes_from_frame_to_frame():
    texts = read_text_stream(TERMINAL)
    assert 60 <= len(texts) <= 120 and TERMINAL.stat().st_size < 300_000
    assert all(old != new for old, new in itertools.pairwise(texts))
    assert all(len(text.split("\n")) <= 30 and max(map(len, text.split("\n"))) <= 80 for text in texts)
