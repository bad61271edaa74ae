"""The unlearning methods, one file each."""

from quickdrop_bench.methods.base import METHODS, Context, Method, Search, StageResult
from quickdrop_bench.methods.stages import Relearning

__all__ = ["METHODS", "Context", "Method", "Relearning", "Search", "StageResult"]
