"""A model version in a form that other programs read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import check_replaceable, write_atomically, writing
from quickdrop_bench.data.labelled import DataInfo
from quickdrop_bench.serving.run import TrainedRun

BATCH = 2
"""Images of the example that a program is recorded with; any number can be given to it afterwards."""


class FromPixels(nn.Module):
    """A model with its normalisation: maps pixels in [0, 1], (B, C, H, W) float32, to (B, classes) logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, info: DataInfo) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(info.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(info.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def export(run: TrainedRun, path: Path, form: str, version: int | None = None) -> None:
    """Write a version of a run's model.

    ``torchscript`` and ``onnx`` take pixels in [0, 1] and normalise them. ``safetensors`` holds the parameters alone;
    its metadata say how to build the model and normalise (keys ``architecture``, ``image_shape``, ``classes``,
    ``mean``, ``std``, ``forgotten``; JSON values).

    Args:
        run: the trained federation.
        path: the file to write; :class:`BadInput` if it cannot be written.
        form: one of :data:`FORMATS`.
        version: None for the current one.
    """
    if form not in FORMATS:
        raise BadInput("--format", form, f"use one of {', '.join(FORMATS)}")
    path = Path(path)
    with writing("--output", path):
        check_replaceable(path)
        write_atomically(path, lambda temporary: FORMATS[form](run, temporary, version))


def _safetensors(run: TrainedRun, path: Path, version: int | None) -> None:
    spec, info = run.spec, run.info
    about = {
        "architecture": {"name": spec.model, **{name: getattr(spec, name) for name in spec.model_options}},
        "image_shape": info.image_shape,
        "classes": info.class_names,
        "mean": info.mean,
        "std": info.std,
        "forgotten": [str(request) for request in run.forgotten(version)],
    }
    state = {name: value.cpu().contiguous() for name, value in run.state(version).items()}
    path.write_bytes(save(state, {name: json.dumps(value) for name, value in about.items()}))


def _torchscript(run: TrainedRun, path: Path, version: int | None) -> None:
    example = torch.zeros(BATCH, *run.info.image_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what many runtimes load
        traced = torch.jit.trace(FromPixels(run.model(version), run.info), example)
        # Through memory: torch ends the whole process where its own writer finds the disk full.
        buffer = BytesIO()
        torch.jit.save(traced, buffer)
    path.write_bytes(buffer.getvalue())


def _onnx(run: TrainedRun, path: Path, version: int | None) -> None:
    try:
        import onnxscript  # noqa: F401  # torch's exporter asks for it only when it is half way
    except ImportError:
        raise BadInput("--format", "onnx", "it needs more packages: pip install 'quickdrop-bench[onnx]'") from None
    example = torch.zeros(BATCH, *run.info.image_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            FromPixels(run.model(version), run.info).eval(),
            (example,),
            path,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )


FORMATS: dict[str, Callable[[TrainedRun, Path, int | None], None]] = {
    "safetensors": _safetensors,
    "torchscript": _torchscript,
    "onnx": _onnx,
}
