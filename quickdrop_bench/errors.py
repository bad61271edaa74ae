"""Errors that a user can cause and repair."""

from __future__ import annotations

__all__ = ["BadInput", "Unsupported"]


class BadInput(ValueError):
    """An option, a file or a value that cannot be used.

    The command line prints the message as one sentence and exits with code 2.

    Args:
        option: the option as the user types it, e.g. ``--alpha``.
        value: what was given.
        allowed: what would be accepted, as the end of the sentence "... is not usable: <allowed>".
    """

    def __init__(self, option: str, value: object, allowed: str) -> None:
        super().__init__(f"{option} {value}: {' '.join(allowed.split())}.")
        self.option = option


class Unsupported(BadInput):
    """A method was asked for something that it declares it cannot do (paper, Table 1)."""
