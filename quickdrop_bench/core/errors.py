"""Errors that a user can cause and repair."""

from __future__ import annotations

__all__ = ["BadInput", "Missing", "Unsupported", "is_out_of_memory", "positive", "printable"]


class BadInput(ValueError):
    """An option, a file or a value that cannot be used.

    The command line prints the message as one sentence and exits with code 2.

    Args:
        option: the option as the user types it, e.g. ``--alpha``.
        value: what was given.
        allowed: what would be accepted, as the end of the sentence "... is not usable: <allowed>".
    """

    def __init__(self, option: str, value: object, allowed: str) -> None:
        super().__init__(f"{printable(f'{option} {value}')}: {printable(' '.join(allowed.split()))}.")
        self.option, self.value, self.allowed = option, value, allowed

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, object, str]]:
        return type(self), (self.option, self.value, self.allowed)  # exceptions alone would hand on their message


def printable(text: str) -> str:
    """Text on one line: line breaks, surrogates and what would command a terminal are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Unsupported(BadInput):
    """A method was asked for something that it declares it cannot do (paper, Table 1)."""


class Missing(BadInput):
    """Data that are not where they were looked for."""


def positive(option: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Raise :class:`BadInput` unless value > 0 (or ≥ ``at_least``), finite and ≤ ``at_most``."""
    low = value >= at_least if at_least is not None else value > 0
    if not (low and value < float("inf") and (at_most is None or value <= at_most)):
        bound = f"at least {at_least:.15g}" if at_least is not None else "above 0"
        limit = f" and at most {at_most:.15g}" if at_most is not None else ""
        raise BadInput(option, value, f"a number {bound}{limit} is needed")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is used up, as Python or torch put it, on a CPU or a GPU."""
    said = ("allocate memory", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in said))
