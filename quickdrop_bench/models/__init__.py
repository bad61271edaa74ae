"""Model architectures."""

from quickdrop_bench.models.convnet import ConvNet, prunable_layers
from quickdrop_bench.models.initial import draw_parameters

__all__ = ["ConvNet", "draw_parameters", "prunable_layers"]
