"""Streams of text: what a terminal, an accessibility tree or a page's text was, over time.

A stream is a file of JSON lines, an object a line with the `text` of one observation; other keys are passed over:

    {"text": "$ make\ncc -c main.c\n$"}

`data/text/terminal.jsonl` is a terminal's (`tests/terminal_text.py` recorded it). This module knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

from fvlm_lib.json_files import kind_of, parse_object


def read_text_stream(path: str | Path) -> list[str]:
    """The texts of a stream, in its order; a text may be empty, and blank lines of the file are passed over.

    Raises ValueError naming the file, and the line, that is missing, cannot be read, or holds no text.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(
            f'{file} is a folder; it must be a file of JSON lines like {{"text": "what was on the screen"}}'
        )
    try:
        content = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from None
    texts = []
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines would cut some texts
        if line.strip():
            texts.append(_text_of(line, f"{file}, line {number}"))
    if not texts:
        raise ValueError(
            f'{file} holds no text; it must have an object a line like {{"text": "what was on the screen"}}'
        )
    return texts


def _text_of(line: str, name: str) -> str:
    """The text of one line of a file."""
    entry = parse_object(line, name, unique_keys=True)
    if "text" not in entry:
        raise ValueError(f'{name} has no text; it must be like {{"text": "what was on the screen"}}')
    text = entry["text"]
    if not isinstance(text, str):
        raise ValueError(f'{name}: its text is {kind_of(text)}, must be a text like "what was on the screen"')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name}: its text has half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    return text
