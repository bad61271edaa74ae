"""The unlearning methods, one file each. Importing this package registers all of them."""

from quickdrop_bench.methods import (  # noqa: F401
    conda,
    fed_eraser,
    fed_osd,
    fed_quit,
    fu_mp,
    mode,
    negation,
    none,
    pga,
    quickdrop,
    random_subset,
    recovery_only,
    retrain,
    s2u,
    sga,
)
from quickdrop_bench.methods.base import METHODS, Context, Method, Search, StageResult, load_plugins
from quickdrop_bench.methods.stages import Relearning

__all__ = ["METHODS", "Context", "Method", "Relearning", "Search", "StageResult", "load_plugins"]
