"""What methods declare of themselves, and what the paper's Table 1 says of them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["THRESHOLDS", "Capability", "Marks", "computation"]

THRESHOLDS = ((1.5, "✗ (very low)"), (5.0, "✗ (low)"), (20.0, "✗ (medium)"))
"""Speed-ups below which computation is not efficient, and the mark."""
EFFICIENT = "✓ (high)"


def computation(speedup: float) -> str:
    """The mark of a speed-up in sample-gradients over the oracle."""
    return next((mark for limit, mark in THRESHOLDS if speedup < limit), EFFICIENT)


@dataclass(frozen=True)
class Capability:
    """What a method declares.

    Attributes:
        method: its name in the rows.
        classes, client: the levels of request that it serves.
        relearn: whether it can learn again what was forgotten.
        summary: one line on how it works.
    """

    method: str
    classes: bool
    client: bool
    relearn: bool
    summary: str


@dataclass(frozen=True)
class Marks:
    """What the paper's Table 1 says of a method; the computation mark is text, e.g. ``✗ (low)``."""

    classes: bool
    client: bool
    relearn: bool
    storage: bool
    computation: str
