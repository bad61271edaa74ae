"""Model architectures."""

from quickdrop_bench.models.convnet import ConvNet

__all__ = ["ConvNet"]
