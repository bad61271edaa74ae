"""What a model is, and the registry of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from quickdrop_bench.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn


class Model(Protocol):
    """An architecture: a frozen dataclass whose fields are its options.

    The command line sets those that :class:`~quickdrop_bench.harness.federation_spec.FederationSpec` has too. PyTorch
    is imported in :meth:`build`, so that lists of models need not wait for it.
    """

    title: ClassVar[str]
    """Its name in tables."""
    summary: ClassVar[str]
    """One line for ``quickdrop-bench models``."""

    def build(self, channels: int, image_size: int, classes: int) -> nn.Module:
        """A network from normalised images, (B, C, H, W) float32 with H = W, to (B, classes) logits.

        Every method works on it if

        * no layer couples the samples of a batch, as batch normalisation would, and it has no buffers: clients send
          parameters;
        * parameters with two or more dimensions are weights of ``nn.Conv2d`` and ``nn.Linear``, which gradient matching
          compares, and each of these layers runs once;
        * every parameter is trained;
        * what it does depends on the shape of the images alone, not on their values: a GPU replays a step as it was;
        * a normalisation is an ``nn.GroupNorm`` and comes right behind its convolution, whose channels FU-MP prunes;
        * every module draws its own parameters in ``reset_parameters``.

        A (nested) ``nn.Sequential`` is matched by passes that are written out if all its layers are known to
        :mod:`quickdrop_bench.functional.layers`, and by autograd else.

        Args:
            channels: of the images.
            image_size: height and width, in pixels.
            classes: number of classes.

        Raises:
            BadInput: the images are too small for the model.
        """
        ...


MODELS = Registry[type[Model]]("--model", "quickdrop_bench.models")
