"""What rows call things, as people read it: methods, classes, requests, data sets, settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from quickdrop_bench.harness.experiment import ORACLE as ORACLE
from quickdrop_bench.harness.experiment import ORIGINAL as ORIGINAL
from quickdrop_bench.methods import METHODS

CONTROL = "random-subset"
"""QuickDrop without distillation: what it does as well, distillation did not buy."""

JPEG = re.compile(r"cifar-?10(?!\d).*jpe?g|jpe?g.*cifar-?10(?!\d)", re.IGNORECASE)


def registered(method: str) -> str:
    """The method's registered name; what differs from the preset may stand behind it in brackets."""
    return method.partition(" (")[0]


def is_control(method: str) -> bool:
    """Whether a method is there to be compared with: then its registered title ends with ``(control)``."""
    return method_title(registered(method)).endswith("(control)")


def method_title(method: str, marks: Sequence[str] = ()) -> str:
    """The title that tables and figures show, with what differs from the preset, and further marks."""
    own = registered(method)
    title = getattr(METHODS[own], "title", own) if own in METHODS else own
    return marked(title, [*filter(None, [method[len(own) + 2 : -1]]), *marks])


def marked(name: str, marks: Sequence[str]) -> str:
    """A name with what a reader must know beside it."""
    if not marks:
        return name
    opened = f"{name[:-1]}; " if name.endswith(")") else f"{name} ("
    return f"{opened}{'; '.join(marks)})"


def request_name(rows: pd.DataFrame) -> str:
    """A request as people read it, e.g. ``class-truck``."""
    named = rows["request_name"].dropna()
    return str((named if len(named) else rows["request"]).iloc[0])


def class_name(rows: pd.DataFrame, label: int) -> str:
    """A class as people read it; its number where rows hold no name, or several data sets have several."""
    found = rows.loc[rows["metric"] == f"class_{label}_accuracy", "class_name"].dropna().unique()
    return str(found[0]) if len(found) == 1 else str(label)


def dataset_name(label: str) -> str:
    """A data set for people: images of CIFAR-10 that went through JPEG are not the original ones, and say so.

    Example:
        >>> dataset_name("imagefolder:cifar10-jpeg"), dataset_name("mnist")
        ('CIFAR-10 (JPEG)', 'mnist')
    """
    return "CIFAR-10 (JPEG)" if JPEG.search(label) else label


def differing(changes: object) -> str:
    """What a setting's name ends with where it differs from the preset."""
    return f", with {changes}" if changes else ""


def setting_name(setting: Mapping[str, Any], leave_out: Sequence[str | None] = ()) -> str:
    """A setting in one phrase."""
    parts = {
        "dataset": dataset_name(str(setting["dataset"])),
        "clients": f"{setting['clients']} clients",
        "distribution": f"{setting['distribution']}",
        "request": f"request {setting['request']}",
        "protocol": "" if setting["protocol"] == "preset" else f"protocol {setting['protocol']}",
    }
    return ", ".join(text for name, text in parts.items() if text and name not in leave_out) + differing(
        setting["changes"]
    )
