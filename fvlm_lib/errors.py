"""Errors that users meet in more than one wing, and how their sentences are put. Imports nothing of the library."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_REASON = 200  # characters of what another library says; some list all that they know


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names it, what is wrong and what would be right."""


def first_line(error: Exception) -> str:
    """What an error says in one line, cut where that is very long; its kind where it says nothing."""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return said if len(said) <= LONGEST_REASON else said[: LONGEST_REASON - 1] + "…"


def some(names: Iterable[str], count: int = 5) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return ", ".join(ordered[:count]) + rest if ordered else "nothing"
