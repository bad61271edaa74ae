"""The unlearning methods, one file each. Importing this package registers all of them."""

from quickdrop_bench.methods import fed_eraser, fu_mp, quickdrop, random_subset, retrain, s2u, sga  # noqa: F401
from quickdrop_bench.methods.base import METHODS, Context, Method, Search, StageResult, load_plugins
from quickdrop_bench.methods.stages import Relearning

__all__ = ["METHODS", "Context", "Method", "Relearning", "Search", "StageResult", "load_plugins"]
