from __future__ import annotations

import re

import pytest
import torch

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.functional.pooling import SMALL, HalvingPool
from quickdrop_bench.models import ConvNet


@pytest.mark.parametrize(("shape", "parameters"), [((3, 32), 320_010), ((1, 28), 317_706)])
def test_parameter_counts_of_the_paper(shape: tuple[int, int], parameters: int) -> None:
    assert sum(p.numel() for p in ConvNet(*shape, 10).parameters()) == parameters


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 40)])
@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
def test_logits(channels: int, size: int, norm: str) -> None:
    model = ConvNet(channels, size, 7, width=4, norm=norm)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_no_coupling_between_samples() -> None:
    model = ConvNet(1, 8, 3, width=4, depth=2)
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(model(images)[:2], model(images[:2]))
    assert not list(model.buffers())


@pytest.mark.parametrize(("options", "named"), [({"norm": "batch"}, "--norm"), ({"depth": 4}, "--depth")])
def test_bad_options(options: dict[str, object], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        ConvNet(1, 8, 3, **options)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("side", "batch"), [(8, 5), (32, 150)], ids=["tiny", "large"])
def test_exported_models_pool_by_the_library_and_leave_training_alone(side: int, batch: int) -> None:
    model, images = ConvNet(1, side, 3, width=4), torch.randn(batch, 1, side, side)
    expected = model(images)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected)
    traced = torch.jit.trace(model, images)
    exported = torch.export.export(model, (images,)).module()
    for other in (traced, exported):
        graph = str(other.inlined_graph if other is traced else other.graph)
        assert len(re.findall(r"aten\W+avg_pool2d", graph)) == 3
        torch.testing.assert_close(other(images), expected)
    model(images).sum().backward()


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 4), (2, 3, 4, 16), (2, 3, 16, 16), (40, 16, 32, 32)], ids=["tiny", "wide", "small", "large"]
)
def test_halving_pool_is_average_pooling(shape: tuple[int, ...]) -> None:
    """In its values and in both derivatives."""
    torch.manual_seed(0)
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert (images.numel() > SMALL) == (shape[0] == 40)
    pooled = [pool(images) for pool in (HalvingPool(), torch.nn.AvgPool2d(2))]
    gradients = [torch.autograd.grad((p**3).sum(), images, create_graph=True)[0] for p in pooled]
    curvatures = [torch.autograd.grad((g**2).sum(), images)[0] for g in gradients]
    for ours, theirs in (pooled, gradients, curvatures):
        torch.testing.assert_close(ours, theirs)
