"""Errors that users meet in more than one wing, and how their sentences are put. Imports nothing of the library."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names it, what is wrong and what would be right."""


def first_line(error: Exception) -> str:
    """What an error says in one line; its kind where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def some(names: Iterable[str], count: int = 5) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return ", ".join(ordered[:count]) + rest if ordered else "nothing"
