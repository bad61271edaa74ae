"""Errors that a user can cause and repair."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

EXHAUSTED = {
    "Too many open files": "too many files are open; allow more, as with ulimit -n 1024",
    **dict.fromkeys(
        # What the linker says of a library, and oneDNN of a kernel, for which no address space is left, stands last.
        ("allocate memory", "out of memory", "bad_alloc", "failed to map segment", "could not create a primitive"),
        "there is not enough memory; use a smaller model, batch or data set",
    ),
}
"""What an error says, as the system, Python or torch put it on a CPU or a GPU → what to do."""


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


def exhausted(error: BaseException) -> str:
    """What the machine has no more of, for a sentence; nothing if an error is about something else."""
    if isinstance(error, MemoryError):
        return EXHAUSTED["out of memory"]
    told = str(error) if isinstance(error, RuntimeError | OSError | ImportError) else ""
    return next((sentence for text, sentence in EXHAUSTED.items() if text in told), "")


@contextmanager
def others_code(option: str, name: object) -> Iterator[None]:
    """Raise :class:`BadInput`, which names it, for whatever fails in code that may come from another package.

    What a sentence is said of already passes, and so does what the machine has no more of.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, BadInput) or exhausted(error):
            raise
        log.debug("where it failed", exc_info=error)
        said = BadInput(option, name, f"it failed ({type(error).__name__}: {error})")
        for note in getattr(error, "__notes__", ()):
            said.add_note(note)  # of an error that all of several processes have met
        raise said from error
