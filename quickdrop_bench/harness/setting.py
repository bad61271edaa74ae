"""What a run shares with those that it may be averaged with: everything but the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["changes"]


def changes(own: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """What differs from the preset, for headings.

    Args:
        own: values by name.
        usual: the preset's; at least those names.

    Example:
        >>> changes({"rounds": 2, "lr": 0.1, "distill": False}, {"rounds": 30, "lr": 0.1, "distill": True})
        'rounds 2, distill false'
    """
    return ", ".join(f"{name} {_text(value)}" for name, value in own.items() if value != usual[name])


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
