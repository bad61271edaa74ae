"""Classes by name: rows number them, and say beside it what they are called."""

from __future__ import annotations

import pandas as pd

__all__ = ["class_name", "request_name"]


def request_name(rows: pd.DataFrame) -> str:
    """A request as people read it, e.g. ``class-truck``; as in ``request`` where older rows hold no name.

    Args:
        rows: of one request, at least one.
    """
    named = rows["request_name"].dropna() if "request_name" in rows else rows["request"]
    return str((named if len(named) else rows["request"]).iloc[0])


def class_name(rows: pd.DataFrame, label: int) -> str:
    """A class as people read it; its number where older rows hold no name, or several data sets have several."""
    if "class_name" not in rows:
        return str(label)
    found = rows.loc[rows["metric"] == f"class_{label}_accuracy", "class_name"].dropna().unique()
    return str(found[0]) if len(found) == 1 else str(label)
