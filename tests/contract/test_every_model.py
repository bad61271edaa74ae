"""Every method on every registered model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from quickdrop_bench.data.labelled import DataInfo, LabelledSet
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.functional.aggregation import is_finite
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.methods import METHODS
from quickdrop_bench.models import MODELS
from quickdrop_bench.serving.export import FORMATS
from tests.by_hand import equal
from tests.conftest import Make
from tests.contract.tiny import TRAIN, make_context
from tests.small_models import SMALL

TOY = replace(TRAIN, rounds=1, local_steps=2)
OTHERS = [name for name in SMALL if name != "convnet"]
"""The contract of methods is tested on the ConvNet."""

QUICK = ("fu-mp", "quickdrop")
"""Methods that are tried on every model in quick tests: each uses a model in a way of its own."""

RESTING = ("none", "recovery-only", "fedquit")
"""Those that may leave a model as it is: a teacher's least logit is the true class's, where that hardly trained."""

CASES = [
    pytest.param(model, name, marks=[] if name in QUICK or model == "lenet5" else pytest.mark.slow)
    for model in OTHERS
    for name in METHODS
]


@pytest.fixture
def toy_federation(model: str, make_federation: Make) -> Federation:
    return make_federation(architecture=SMALL[model])


@pytest.mark.parametrize(("model", "name"), CASES)
def test_every_method_serves_a_request(
    name: str, toy_federation: Federation, toy_clients: dict[int, LabelledSet]
) -> None:
    method = METHODS[name]()
    context = make_context(toy_federation, toy_clients, min(method.levels), train=TOY)
    unlearned = method.unlearn(context)
    recovered = method.recover(context, unlearned.state) or unlearned
    stages = [unlearned, recovered] + ([method.relearn(context, recovered.state)] if method.can_relearn else [])
    for stage in stages:
        assert not stage.diverged
        assert is_finite(stage.state)
        assert {n: v.shape for n, v in stage.state.items()} == {n: v.shape for n, v in context.state.items()}
        assert name in RESTING or not equal(stage.state, context.state)


@pytest.mark.parametrize("model", OTHERS)
def test_training_distils(toy_federation: Federation, toy_clients: dict[int, LabelledSet]) -> None:
    context = make_context(toy_federation, toy_clients, train=TOY)
    for client in context.clients.values():
        assert client.synthetic is not None
        assert client.synthetic.images.isfinite().all()
        assert not torch.equal(client.synthetic.images, client.subset.images)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", ["safetensors", "torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", SMALL)
def test_every_model_is_exported(model: str, form: str) -> None:
    """Programs take any number of pictures, and safetensors say how to build the model."""
    if form == "onnx":
        pytest.importorskip("onnxscript")
    spec = FederationSpec(model=model, width=4, depth=2)
    network = spec.architecture.build(3, 8, 3)
    info = DataInfo("toy", (3, 8, 8), ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3, 9, 9)
    run: Any = SimpleNamespace(spec=spec, info=info, forgotten=lambda version: [])
    run.model, run.state = lambda version: network, lambda version: network.state_dict()
    FORMATS[form](run, Path("model"), None)
    for count in (1, 5):
        pixels = torch.rand(count, 3, 8, 8)
        expected = network((pixels - 0.5) / 0.2).detach()
        torch.testing.assert_close(READERS[form](pixels), expected, rtol=1e-3, atol=1e-4)


def from_safetensors(pixels: Tensor) -> Tensor:
    with safe_open("model", "pt") as file:
        about = json.loads(file.metadata()["architecture"])
    network = MODELS[about.pop("name")](**about).build(3, 8, 3)
    network.load_state_dict(load_file("model"))
    found: Tensor = network((pixels - 0.5) / 0.2).detach()
    return found


def from_onnx(pixels: Tensor) -> Tensor:
    program = pytest.importorskip("onnx.reference").ReferenceEvaluator("model")
    return torch.tensor(program.run(None, {"pixels": pixels.numpy()})[0])


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "safetensors": from_safetensors,
    "torchscript": lambda pixels: torch.jit.load("model")(pixels),
    "onnx": from_onnx,
}
