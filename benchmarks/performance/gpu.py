"""What a GPU makes of a client's local steps, and whether both engines compute the same.

Run it as ``python benchmarks/performance/gpu.py``.

The batch is the paper's and so is the model, unless ``--model`` names another; the images are random. Milliseconds a
step are those of the card's own clock. The differences are those of the weights after two steps, relative to their
change, from a run in float64.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from lightning.fabric import Fabric

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation, initial_synthetic_set
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.federation.static import PRECISIONS
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.provenance import device_name
from quickdrop_bench.models import MODELS, Model

SETTINGS = Distillation(image_steps=1, image_lr=0.1, image_momentum=0.5, batch_size=16)
SHARES = (0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02)
"""Of a client's classes, uneven as the paper's partition makes them."""


def client(count: int, device: torch.device) -> LabelledSet:
    """Random images of seven classes."""
    stream = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor(SHARES), count, True, generator=stream)
    images = torch.randn(count, 3, 32, 32, generator=stream) + labels[:, None, None, None] / 3
    return LabelledSet.of(images.to(device), labels.to(device))


def trained(
    data: LabelledSet, phase: Phase, *, distil: bool, static: bool, model: Model, precision: str = "32-true"
) -> tuple[State, PhaseResult]:
    """Where one client's steps begin and end; they are made twice, since the first time captures and compiles."""
    fabric = Fabric(accelerator="auto", devices=1, precision=precision)  # type: ignore[arg-type]
    dtype = torch.float64 if precision == "64-true" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = model.build(3, 32, 10)
    federation = Federation(fabric, network.to(dtype), SETTINGS, static=static)
    state = federation.read()
    own = replace(data, images=data.images.to(dtype))
    start = initial_synthetic_set(own, 100, torch.Generator().manual_seed(1))
    for _ in range(2):
        synthetic = {0: copy.deepcopy(start)} if distil else {}
        result = federation.run(state, {0: own}, phase, 1, synthetic=synthetic)
    return state, result


def differences(data: LabelledSet, model: Model, precision: str) -> Iterator[tuple[str, float]]:
    """How far each engine is from float64."""
    # Later steps say less: rounding that takes one activation across zero changes a weight by a thousandth.
    phase = Phase("same", rounds=1, local_steps=2, batch_size=256, lr=0.05)
    start, exact = trained(data, phase, distil=True, static=False, model=model, precision="64-true")
    for name, static in (("loop", False), ("static engine", True)):
        _, found = trained(data, phase, distil=True, static=static, model=model, precision=precision)
        weights = {n: value for n, value in exact.state.items() if value.dim() > 1}
        yield name, max(float((found.state[n] - v).norm() / (v - start[n]).norm()) for n, v in weights.items())


def main() -> None:
    """Print both, without and with TF32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=9000, help="of the client")
    parser.add_argument("--steps", type=int, default=50, help="measured")
    parser.add_argument("--model", choices=list(MODELS), default="convnet")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    options = parser.parse_args()
    model = MODELS[options.model]()
    device = Fabric(accelerator="auto", devices=1).device
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    print(device_name(device), torch.__version__)
    data = client(options.images, device)
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        name = f"{options.precision}, TF32" if tf32 else options.precision
        for engine, difference in differences(data, model, options.precision):
            print(f"{name:16s} {engine:14s} weights differ from float64 by {difference:.1e} of their change")
        for distil in (False, True):
            for engine, static in (("loop", False), ("static engine", True)):
                phase = Phase("speed", rounds=1, local_steps=options.steps, batch_size=256, lr=0.01)
                _, found = trained(data, phase, distil=distil, static=static, model=model, precision=options.precision)
                cost = found.cost
                each, matching = (1e3 * s / options.steps for s in (cost.seconds, cost.distillation_seconds))
                kind = "with distillation" if distil else "plain"
                print(f"{name:16s} {engine:14s} {kind:18s} {each:8.2f} ms a step, {matching:.2f} of it matching")


if __name__ == "__main__":
    main()
