"""The unlearning methods, one file each. Importing this package registers all of them."""

from quickdrop_bench.methods import quickdrop, retrain, sga  # noqa: F401
from quickdrop_bench.methods.base import METHODS, Context, Method, StageResult, load_plugins

__all__ = ["METHODS", "Context", "Method", "StageResult", "load_plugins"]
