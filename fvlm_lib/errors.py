"""Errors that users meet in more than one wing. Imports nothing."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names it, what is wrong and what would be right."""


def first_line(error: Exception) -> str:
    """What an error says in one line; its kind where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
