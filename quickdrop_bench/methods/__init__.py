"""The unlearning methods, one file each."""

from quickdrop_bench.methods.context import Context
from quickdrop_bench.methods.registry import METHODS, Method, Search, StageResult
from quickdrop_bench.methods.stages import Relearning

__all__ = ["METHODS", "Context", "Method", "Relearning", "Search", "StageResult"]
