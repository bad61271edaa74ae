"""Rows as measured, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from quickdrop_bench.reporting.layout import CONTROL, ORACLE, ORIGINAL, registered

__all__ = [
    "SEARCH",
    "SETTING",
    "TRAINING",
    "against_oracle",
    "complete",
    "derive",
    "latest",
    "setting_of",
    "without_training",
]

SETTING = ["dataset", "clients", "distribution", "request", "protocol", "changes", "setting"]
"""The columns that say what was measured, whatever the method and seed; only rows that share them are averaged.

``setting`` is a hash of all that the others do not say; ``changes`` tells in words what differs from the preset."""

DEFAULTS: Mapping[str, Any] = {
    "protocol": "preset",
    "federation_hash": "",
    "device": "",
    "changes": "",
    "method_setting": "",
    "method_changes": "",
}
"""What older rows leave out."""

TRAINING = "fl-training"
SEARCH = "search"
"""Stage of the rows that say what choosing a method's settings cost."""

EQUIVALENTS = (
    ("sample_gradients", 1.0, math.nan),
    ("second_order_sample_gradients", 1.0, 0.0),
    ("sample_forwards", 1 / 3, 0.0),
)
"""What adds up to gradient equivalents: metric, weight, and what a run that leaves it out did."""

COMPARED = ("seconds", "f_set_accuracy", "r_set_accuracy", *(name for name, _, _ in EQUIVALENTS))


def setting_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of :data:`SETTING` in one row, as read from a JSON line; None for a setting that is not recorded."""
    return tuple(row.get(name, DEFAULTS.get(name)) for name in SETTING)


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with every column of :data:`SETTING`, and values as numbers, NaN where they are none.

    A method whose hyper-parameters differ from the preset's becomes a method of its own, which says so behind its
    name. Settings, or hyper-parameters, that would bear one name get their hash beside it.
    """
    rows = rows.copy()
    if rows.empty:
        return rows
    for name, default in DEFAULTS.items():
        rows[name] = rows[name].fillna(default) if name in rows else default
    if "value" in rows:
        rows["value"] = pd.to_numeric(rows["value"], errors="coerce").astype(float)
    if "setting" not in rows or rows["setting"].isna().any():
        rows["setting"] = rows.reindex(columns=["setting"])["setting"].astype(object).fillna(_unrecorded(rows))
    rows["changes"] = _told_apart(rows, SETTING[:-1], "setting")
    changes = _told_apart(rows, [*SETTING, "method", "method_changes"], "method_setting")
    rows["method"] = rows["method"].where(changes == "", rows["method"] + " (" + changes + ")")
    return rows.assign(method_changes="")


def _unrecorded(rows: pd.DataFrame) -> pd.Series:
    """For older rows, which have no ``setting``: what else tells federations apart whatever the seed."""
    training = rows[(rows["stage"] == TRAINING) & (rows["metric"] == "rounds") & (rows["federation_hash"] != "")]
    known = training.drop_duplicates("federation_hash", keep="last").set_index("federation_hash")["value"]
    rounds = rows["federation_hash"].map(known).astype(float)
    # A training that failed states none; it belongs to those beside it.
    rounds = rounds.fillna(rounds.groupby([rows[name] for name in SETTING[:5]]).transform("max"))
    facts = rows.reindex(columns=["patience", "precision", "scale", "fine_tuning"]).astype(object)
    of_figures = ~rows.get("artefact", pd.Series("", rows.index)).astype(str).str.startswith("table")
    facts.loc[of_figures, ["scale", "fine_tuning"]] = None  # which these vary on purpose
    texts = ("rounds " + rounds.map("{:g}".format) + ", ").where(rounds.notna(), "")
    for name, values in facts.items():
        texts += (f"{name} " + values.astype(str) + ", ").where(values.notna(), "")
    return "not recorded (" + texts.str.removesuffix(", ") + ")"


def _told_apart(rows: pd.DataFrame, within: Sequence[str], key: str) -> pd.Series:
    """The last of some columns, with the value of another where that is not the same in all rows."""
    text = rows[within[-1]]
    several = rows.assign(**{key: rows[key].replace("", None)}).groupby(list(within))[key].transform("nunique") > 1
    return text.where(~several | (rows[key] == ""), text.where(text == "", text + ", ") + "setting " + rows[key])


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
    full = full[full["federation_hash"] == full.groupby([*setting, "seed"])["federation_hash"].transform("last")]
    part = full["stage"].where(full["stage"].isin([TRAINING, SEARCH]), "request").rename("part")
    newest = full.groupby([*setting, "method", "seed", part])["spec_hash"].transform("last")
    return rows.loc[full.index[full["spec_hash"] == newest]]


def without_training(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of requests and of the original model: what training cost a method does not mean that the method was run."""
    return rows[(rows["stage"] != TRAINING) | (rows["method"] == ORIGINAL)]


def derive(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from the rows, each against another's run of the same setting and seed on the same device.

    Returns:
        The rows and, at stage ``total``, the metrics ``storage_bytes`` (server's + clients'), ``speedup`` (oracle's
        seconds ÷ the method's), ``speedup_sample_gradients`` (the same with first- plus second-order sample-gradients
        plus a third of the forward-only passes, as backward takes about two thirds of a pass), ``f_set_gap`` and
        ``r_set_gap`` (the method's accuracy − the oracle's), ``f_set_gap_control`` and ``r_set_gap_control`` (− the
        control's).
    """
    rows = complete(rows)
    if rows.empty:
        return rows
    total = rows[(rows["stage"] == "total") & (rows["method"] != ORIGINAL)]
    if total.empty:
        return rows
    keys = [*SETTING, "seed", "device", "method"]
    wide = total.pivot_table(index=keys, columns="metric", values="value", aggfunc="last").reset_index()
    control = _against(wide, CONTROL).drop(columns=["speedup", "speedup_sample_gradients"])
    control = control.rename(columns={name: f"{name}_control" for name in ("f_set_gap", "r_set_gap")})
    derived = pd.concat([_storage(wide), _against(wide, ORACLE), control])
    new = derived.melt([*SETTING, "seed", "method", "stage"], var_name="metric", value_name="value").dropna(
        subset="value"
    )
    return pd.concat([rows, new], ignore_index=True) if len(new) else rows


def _storage(wide: pd.DataFrame) -> pd.DataFrame:
    """Bytes on server and clients, for runs that state them."""
    kept = wide.reindex(columns=["storage_server_bytes", "storage_client_bytes"])
    return _identity(wide).assign(storage_bytes=kept.sum(axis=1, min_count=1))


def _against(wide: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Speed-ups and gaps of runs beside which a reference was measured.

    Of a reference in several settings the one counts that differs from the preset as the run does, or else the first,
    which is the one with the preset's values if that is there.
    """
    keys = [*SETTING, "seed", "device"]  # seconds of two devices have no ratio
    wide = wide.reindex(columns=[*keys, "method", *COMPARED])
    wide["differs"] = [method.removeprefix(registered(method)) for method in wide["method"]]
    known = wide[wide["method"].map(registered) == reference].sort_values("method").drop(columns="method")
    alike, first = known.drop_duplicates([*keys, "differs"]), known.drop_duplicates(keys).drop(columns="differs")
    pairs = wide[[*keys, "method", "differs"]].merge(first[keys])
    own = pairs.merge(wide, how="left")[list(COMPARED)]
    theirs = pairs.merge(alike, how="left")[list(COMPARED)]
    unlike = pairs.merge(alike[[*keys, "differs"]], how="left", indicator="side")["side"] == "left_only"
    theirs[unlike] = pairs.merge(first, how="left")[list(COMPARED)][unlike]
    pairs = pairs.drop(columns="differs")
    records = zip(own.to_dict("records"), theirs.to_dict("records"), strict=True)
    found = pd.DataFrame([against_oracle(*pair) for pair in records], columns=[*against_oracle({}, {})])
    return pd.concat([_identity(pairs), found], axis=1)


def against_oracle(own: Mapping[Any, Any], oracle: Mapping[Any, Any]) -> dict[str, float]:
    """One run's speed-ups and gaps, see :func:`derive`.

    Args:
        own: the run's metrics at stage ``total``; :data:`COMPARED` are looked at, and any may be missing or NaN.
        oracle: those of the oracle's run.
    """
    (seconds, gradients), (their_seconds, their_gradients) = (
        (_number(side, "seconds"), sum(weight * _number(side, name, rare) for name, weight, rare in EQUIVALENTS))
        for side in (own, oracle)
    )
    return {
        "speedup": _ratio(their_seconds, seconds),
        "speedup_sample_gradients": _ratio(their_gradients, gradients),
        "f_set_gap": _number(own, "f_set_accuracy") - _number(oracle, "f_set_accuracy"),
        "r_set_gap": _number(own, "r_set_accuracy") - _number(oracle, "r_set_accuracy"),
    }


def _number(metrics: Mapping[Any, Any], name: str, missing: float = math.nan) -> float:
    value = metrics.get(name)
    return missing if value is None or math.isnan(value) else float(value)


def _ratio(above: float, below: float) -> float:
    if below:
        return above / below
    return math.inf if above > 0 else math.nan


def _identity(wide: pd.DataFrame) -> pd.DataFrame:
    return wide[[*SETTING, "seed", "method"]].assign(stage="total")
