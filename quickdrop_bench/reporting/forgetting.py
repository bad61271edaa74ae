"""When a method counts as one that forgets: one rule for tables, Figure 7, the report and the leaderboard."""

from __future__ import annotations

from collections.abc import Iterable

from quickdrop_bench.reporting.frame import Setting
from quickdrop_bench.reporting.names import ORACLE, registered

NEAR = 0.01
"""Distance to the oracle, as a fraction, up to which a method has forgotten."""

ROUNDED = 9
"""Digits behind the point that count: 0.95 - 0.94 is 0.01."""


def forgets(setting: Setting, method: str) -> bool:
    """Whether a method has forgotten as the oracle has: the mean of :meth:`Setting.remembered` is :data:`NEAR` at most.

    How much it varies over seeds does not matter, see :func:`decided`.
    """
    return round(setting.remembered(method).mean, ROUNDED) <= NEAR


def decided(setting: Setting, method: str) -> bool:
    """Whether the 95% interval of that mean lies on one side of :data:`NEAR`; of one seed, but for the oracle, not."""
    low, high = (round(end, ROUNDED) for end in setting.remembered(method).interval())
    return registered(method) == ORACLE or high <= NEAR or low > NEAR


def judged_by(settings: Iterable[Setting]) -> str:
    """What says whether a method forgets, as people read it."""
    attacked = any((setting.rows["metric"] == "attack_success_gap").any() for setting in settings)
    return "attack success" if attacked else "F-Set"
