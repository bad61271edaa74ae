"""Options that a user typed and that the command would not use: refused, never ignored."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["typed_options"]


def typed_options(argv: Sequence[str]) -> frozenset[str]:
    """Names of the options on a command line; what presets and ``--config`` files set is not typed."""
    return frozenset(part.partition("=")[0] for part in argv if part.startswith("--"))
