"""Methods as people read them, and signs in tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "COLLAPSED",
    "CONTROL",
    "EMPTY",
    "ORACLE",
    "ORIGINAL",
    "marked",
    "method_name",
    "registered",
]

ORACLE = "retrain-or"
CONTROL = "random-subset"
"""QuickDrop without distillation: what it does as well, distillation did not buy."""

ORIGINAL = "original"
EMPTY = "—"
COLLAPSED = "†"

METHOD_NAMES = {
    "retrain-or": "Retrain-Or",
    "federaser": "FedEraser",
    "s2u": "S2U",
    "sga-or": "SGA-Or",
    "fu-mp": "FU-MP",
    "random-subset": "Random subset (control)",
    "quickdrop": "QuickDrop",
}


def registered(method: str) -> str:
    """The method's registered name; what differs from the preset may stand behind it in brackets."""
    return method.partition(" (")[0]


def method_name(method: str) -> str:
    """The name that tables show, with what differs from the preset."""
    own = registered(method)
    return marked(METHOD_NAMES.get(own, own), list(filter(None, [method[len(own) + 2 : -1]])))


def marked(name: str, marks: Sequence[str]) -> str:
    """A name with what a reader must know beside it."""
    if not marks:
        return name
    opened = f"{name[:-1]}; " if name.endswith(")") else f"{name} ("
    return f"{opened}{'; '.join(marks)})"
