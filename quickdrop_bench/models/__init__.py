"""Model architectures, one file each."""

from quickdrop_bench.models.registry import MODELS, Model

__all__ = ["MODELS", "Model"]
