"""Rows as measured, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from quickdrop_bench.reporting.layout import ORACLE, ORIGINAL

__all__ = ["SEARCH", "SETTING", "TRAINING", "complete", "derive", "latest", "setting_of", "without_training"]

RUNS_WITH = ["federation_hash", "patience"]
"""The columns that runs must share to be compared, beside :data:`SETTING` and the seed."""

SETTING = ["dataset", "clients", "distribution", "request", "protocol"]
"""The columns that say what was measured, whatever the method and seed."""

DEFAULTS: Mapping[str, Any] = {"protocol": "preset", "federation_hash": "", "patience": -1, "device": ""}
"""What older rows leave out."""

TRAINING = "fl-training"
SEARCH = "search"
"""Stage of the rows that say what choosing a method's settings cost."""

COMPARED = ("seconds", "gradient_equivalents", "f_set_accuracy", "r_set_accuracy")


def setting_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of :data:`SETTING` in one row, as read from a JSON line."""
    return tuple(row.get(name, DEFAULTS.get(name)) for name in SETTING)


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with every column of :data:`SETTING`, and values as numbers, NaN where they are none."""
    rows = rows.copy()
    for name, default in DEFAULTS.items():
        rows[name] = rows[name].fillna(default) if name in rows else default
    if "value" in rows:
        rows["value"] = pd.to_numeric(rows["value"], errors="coerce").astype(float)
    return rows


def latest(rows: pd.DataFrame, apart: Sequence[str] = ()) -> pd.DataFrame:
    """Of rows measured under several specs, those of the newest per setting, method and seed.

    Only the newest federation of a setting and seed counts, so that no method is shown beside one of another
    federation. Training, the search for settings and the request itself are runs of their own.

    Args:
        rows: as read from ``rows.jsonl``.
        apart: further columns that tell settings apart, for figures that show several of their values.
    """
    full = complete(rows)
    for name in apart:
        full[name] = full[name].fillna(-1) if name in full else -1
    setting = [*SETTING, *apart]
    for name in RUNS_WITH:
        full = full[full[name] == full.groupby([*setting, "seed"])[name].transform("last")]
    part = full["stage"].where(full["stage"].isin([TRAINING, SEARCH]), "request").rename("part")
    newest = full.groupby([*setting, "method", "seed", part])["spec_hash"].transform("last")
    return rows.loc[full.index[full["spec_hash"] == newest]]


def without_training(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of requests and of the original model: what training cost a method does not mean that the method was run."""
    return rows[(rows["stage"] != TRAINING) | (rows["method"] == ORIGINAL)]


def derive(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from the rows, each against the oracle's run of the same setting and seed on the same device.

    Returns:
        The rows and, at stage ``total``, the metrics ``storage_bytes`` (server's + clients'), ``speedup`` (oracle's
        seconds ÷ the method's), ``speedup_sample_gradients`` (the same with first- plus second-order sample-gradients
        plus a third of the forward-only passes, as backward takes about two thirds of a pass), ``f_set_gap`` and
        ``r_set_gap`` (the method's accuracy − the oracle's).
    """
    rows = complete(rows)
    if rows.empty:
        return rows
    total = rows[(rows["stage"] == "total") & (rows["method"] != ORIGINAL)]
    if total.empty:
        return rows
    keys = [*SETTING, "seed", "device", "method"]
    wide = total.pivot_table(index=keys, columns="metric", values="value", aggfunc="last").reset_index()
    derived = pd.concat([_storage(wide), _against_oracle(wide)])
    new = derived.melt([*SETTING, "seed", "method", "stage"], var_name="metric", value_name="value").dropna(
        subset="value"
    )
    return pd.concat([rows, new], ignore_index=True) if len(new) else rows


def _storage(wide: pd.DataFrame) -> pd.DataFrame:
    """Bytes on server and clients, for runs that state them."""
    kept = wide.reindex(columns=["storage_server_bytes", "storage_client_bytes"])
    return _identity(wide).assign(storage_bytes=kept.sum(axis=1, min_count=1))


def _against_oracle(wide: pd.DataFrame) -> pd.DataFrame:
    """Speed-ups and gaps of every run whose oracle was measured."""
    rare = {"second_order_sample_gradients": 1.0, "sample_forwards": 1 / 3}
    equivalents = wide.reindex(columns=["sample_gradients"])["sample_gradients"]
    for name, weight in rare.items():
        equivalents = equivalents + weight * wide.reindex(columns=[name])[name].fillna(0.0)
    wide = wide.assign(gradient_equivalents=equivalents)
    wide = wide.reindex(columns=[*SETTING, "seed", "device", "method", *COMPARED])
    # Seconds of two devices have no ratio.
    pairs = wide.merge(wide[wide["method"] == ORACLE], on=[*SETTING, "seed", "device"], suffixes=("", "_oracle"))
    return _identity(pairs).assign(
        speedup=pairs["seconds_oracle"] / pairs["seconds"],
        speedup_sample_gradients=pairs["gradient_equivalents_oracle"] / pairs["gradient_equivalents"],
        f_set_gap=pairs["f_set_accuracy"] - pairs["f_set_accuracy_oracle"],
        r_set_gap=pairs["r_set_accuracy"] - pairs["r_set_accuracy_oracle"],
    )


def _identity(wide: pd.DataFrame) -> pd.DataFrame:
    return wide[[*SETTING, "seed", "method"]].assign(stage="total")
