"""Model architectures."""

from quickdrop_bench.models.convnet import ConvNet, prunable_layers

__all__ = ["ConvNet", "prunable_layers"]
