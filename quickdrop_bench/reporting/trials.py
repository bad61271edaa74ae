"""What searches for a method's settings tried."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from filelock import FileLock

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import read_bytes, write_text
from quickdrop_bench.reporting.frame import SETTING
from quickdrop_bench.store.rows import LARGEST, LOCK

__all__ = ["write_trials"]


def write_trials(path: Path, trials: Sequence[Mapping[str, object]]) -> None:
    """Write them, in the place of earlier searches for the same methods.

    Args:
        path: a CSV file; it need not exist.
        trials: one per setting tried, with the columns of :data:`~quickdrop_bench.reporting.frame.SETTING`, ``seed``
            and ``method``.

    Raises:
        BadInput: the file is there and cannot be read; it is left as it was.
    """
    keys = [*SETTING, "seed", "method"]
    new = pd.DataFrame(trials)
    texts = dict.fromkeys(["changes", "setting"], "str")  # empty text is no missing number
    with FileLock(path.with_name(LOCK)):
        if os.path.lexists(path):
            try:
                old = pd.read_csv(io.BytesIO(read_bytes(path, LARGEST)), dtype=texts)
                old = old.fillna(dict.fromkeys(texts, ""))
                known = old[keys].astype(str).agg("|".join, axis=1)
            except (OSError, ValueError, KeyError) as error:
                allowed = f"{path.name} cannot be read ({type(error).__name__}); move it away"
                raise BadInput("--results-dir", path.parent, allowed) from error
            repeated = known.isin(new[keys].astype(str).agg("|".join, axis=1))
            new = pd.concat([old[~repeated], new], ignore_index=True)
        write_text(path, new.to_csv(index=False, float_format="%.6g"))
