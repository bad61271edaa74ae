"""What ``speed.py`` measures: each function prepares something and returns what is called again and again."""

from __future__ import annotations

import copy
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workload import split_by_class

from quickdrop_bench.core.allocator import keep_freed_memory
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import (
    Distillation,
    SyntheticSet,
    augmentation_positions,
    initial_synthetic_set,
)
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.evaluation.membership import membership_inference
from quickdrop_bench.federation import stacked as stacks
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.pooling import HalvingPool
from quickdrop_bench.methods import METHODS, Context
from quickdrop_bench.methods.context import ClientData
from quickdrop_bench.models.convnet import ConvNet

FOLDER = Path(__file__).resolve().parents[2] / "results" / "speed"
BATCH, CLASSES = 256, 10
DISTINCT = 5000
"""Images that are kept in memory where more are needed for their number alone."""

EVERYTHING = 10**6
"""More images than a class ever has."""

Numbers = Mapping[str, float]
Build = Callable[..., Callable[[], Numbers]]


def instructions() -> str:
    """Of the CPU, as ``avx512``."""
    return torch.backends.cpu.get_cpu_capability().lower()


def fabric_of(precision: str = "32-true") -> Fabric:
    """A launched Fabric on the CPU."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def paper_model(width: int = 128, channels: int = 3, side: int = 32, depth: int = 3) -> nn.Module:
    """The ConvNet, from one seed."""
    torch.manual_seed(0)
    return ConvNet(width, depth).build(channels, side, CLASSES)


def as_written(model: nn.Module) -> nn.Module:
    """The same model with the library's pooling."""
    for name, module in model.named_children():
        setattr(model, name, nn.AvgPool2d(2) if isinstance(module, HalvingPool) else as_written(module))
    return model


def noise(count: int, channels: int = 3, side: int = 32, distinct: int | None = None) -> LabelledSet:
    """Random images, their classes in equal parts; every image of ``distinct`` comes up several times."""
    kept = min(count, distinct or count)
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(kept, channels, side, side, generator=stream)
    return LabelledSet(images, torch.arange(kept) % CLASSES, torch.arange(count) % kept)


def plain_loop(model: nn.Module, data: LabelledSet, steps: int, lr: float) -> list[float]:
    """Local training as everybody writes it first; the losses."""
    loader = DataLoader(TensorDataset(data.images[data.rows], data.own_labels()), BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    model.train()
    for images, labels in islice((batch for _ in range(steps) for batch in loader), steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def timed(work: Callable[[], object], per: int) -> Numbers:
    """Seconds of a call, divided."""
    began = time.perf_counter()
    work()
    return {"seconds": (time.perf_counter() - began) / per}


def plain_step(steps: int) -> Callable[[], Numbers]:
    """(a) A step of the plain loop at its defaults: the library's allocator settings, DataLoader, float32."""
    model, data = as_written(paper_model()), noise(steps * BATCH)
    return lambda: timed(lambda: plain_loop(model, data, steps, 0.01), steps)


def engine_step(steps: int, precision: str, compiled: bool = False) -> Callable[[], Numbers]:
    """(a) A step of ours; compiled as a whole to see whether that would pay, in the warm-up."""
    keep_freed_memory()
    model: Any = torch.compile(paper_model()) if compiled else paper_model()
    federation, data = Federation(fabric_of(precision), model), noise(steps * BATCH)
    state = federation.fresh_state(0)
    phase = Phase("speed", 1, steps, BATCH, 0.01)
    return lambda: {"seconds": federation.run(state, {0: data}, phase, 0).cost.seconds / steps}


def matrix_product(flops: float) -> Callable[[], Numbers]:
    """(a) The floating-point operations of a step at the rate of the machine's best large matrix product."""
    sides = (1024, 2048, 4096)
    squares = {n: torch.randn(n, n) for n in sides}

    def call() -> Numbers:
        rates = {}
        for n, square in squares.items():
            began = time.perf_counter()
            square @ square
            rates[n] = 2 * n**3 / (time.perf_counter() - began)
        return {"seconds": flops / max(rates.values()), "gflop_per_second": max(rates.values()) / 1e9}

    return call


def plain_round(clients: int, steps: int) -> Callable[[], Numbers]:
    """(a) A round as everybody writes it first: a copy of the model for each client, averaged by size."""
    model, parts = as_written(paper_model()), split_by_class(noise(5000), clients)

    def work() -> None:
        total, mean = sum(map(len, parts.values())), {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        for data in parts.values():
            local = copy.deepcopy(model)
            plain_loop(local, data, steps, 0.01)
            for name, parameter in local.named_parameters():
                mean[name] += len(data) / total * parameter.detach()
        model.load_state_dict(mean, strict=False)

    def call() -> Numbers:
        seconds = timed(work, 1)["seconds"]
        return {"seconds": seconds, "wall_seconds": seconds}

    return call


def engine_round(
    clients: int,
    steps: int,
    images: int = 5000,
    scale: float | None = None,
    synthetic_batch: int = EVERYTHING,
    width: int = 128,
    side: int = 32,
    batch: int = BATCH,
    distinct: int | None = None,
    alpha: float | None = 0.1,
) -> Callable[[], Numbers]:
    """(a, b, d) A round of ours, with distillation if there is a scale; with the process's peak memory."""
    keep_freed_memory()
    model = paper_model(width, 3, side)
    federation = Federation(fabric_of(), model, Distillation(1, 0.1, 0.5, synthetic_batch))
    data = noise(images, 3, side, distinct)
    parts = split_by_class(data, clients, alpha)
    state = federation.fresh_state(0)
    sets: dict[int, SyntheticSet] = {}
    if scale is not None:
        sets = {i: initial_synthetic_set(d, scale, generator(0, i)) for i, d in parts.items()}
    phase = Phase("speed", 1, steps, batch, 0.01)

    def call() -> Numbers:
        began = time.perf_counter()
        result = federation.run(state, parts, phase, 0, synthetic=sets)
        wall = time.perf_counter() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cost = result.cost
        return {
            "seconds": cost.seconds,
            "wall_seconds": wall,
            "booked_as_distillation": cost.distillation_seconds,
            "synthetic_images_per_step": cost.second_order_sample_gradients / (clients * steps),
            "data_bytes": data.images.nbytes + sum(s.images.nbytes + s.velocity.nbytes for s in sets.values()),
            "peak_bytes": memory,
        }

    return call


def request_stages(
    images: int, side: int, channels: int, width: int, depth: int, batch: int, scale: float = 100.0
) -> Callable[[], Numbers]:
    """(c) A QuickDrop request for a class (10 clients), cold at the first call, and a training step."""
    keep_freed_memory()
    federation = Federation(fabric_of(), paper_model(width, channels, side, depth))
    parts = split_by_class(noise(images, channels, side, DISTINCT), 10)
    clients = {}
    for i, data in parts.items():
        own = initial_synthetic_set(data, scale, generator(0, i))
        extra = data.subset(augmentation_positions(data, own, generator(1, i)))
        clients[i] = ClientData(data, own.as_labelled(), extra, own)
    request = UnlearningRequest("class", (9,))
    training = Phase("fl-training", 1, 50, batch, 0.01)
    context = Context(federation, training, clients, federation.fresh_state(0), request, (request,), 0)
    method = METHODS["quickdrop"](unlearn_local_steps=1, recover_local_steps=2)  # type: ignore[call-arg]
    large = replace(training, local_steps=4)
    pooled = {0: noise(4 * batch, channels, side)}

    def call() -> Numbers:
        numbers: dict[str, float] = {}
        unlearnt = method.unlearn(context)
        recovered = method.recover(context, unlearnt.state)
        assert recovered is not None
        for name, stage in (("unlearning", unlearnt.cost), ("recovery", recovered.cost)):
            numbers |= {f"{name}_seconds": stage.seconds, f"{name}_samples": stage.sample_gradients}
        step = federation.run(context.state, pooled, large, 0).cost
        both = unlearnt.cost + recovered.cost
        numbers["seconds_per_sample_gradient"] = both.seconds / both.sample_gradients
        numbers["large_batch_seconds_per_sample_gradient"] = step.seconds / step.sample_gradients
        return numbers

    return call


def evaluation() -> Callable[[], Numbers]:
    """(f) Accuracy by class on 10 000 images, and membership inference."""
    keep_freed_memory()
    model, test, train = paper_model(), noise(2000), noise(2000)

    def call() -> Numbers:
        accuracy = timed(lambda: class_accuracy(model, test, CLASSES), len(test))
        attack = timed(lambda: membership_inference(model, train, train, test, 0), 2 * len(train) + len(test))
        return {"accuracy_per_image": accuracy["seconds"], "attack_per_image": attack["seconds"]}

    return call


def at_once(images: int, synthetic: int, *, stacked: bool) -> Callable[[], Numbers]:
    """(g) CPU time of a client's step on 8×8 images of five classes, of five clients one by one or in one stack."""
    keep_freed_memory()
    stacks.SMALL = EVERYTHING  # also where it does not pay
    federation = Federation(
        fabric_of(), paper_model(32, 1, 8, 2), Distillation(1, 0.1, 0.5, EVERYTHING), static=None if stacked else False
    )
    data = noise(2 * images, 1, 8).with_classes(range(5), keep=True)
    scale = images / max(synthetic, 1)
    sets = {i: initial_synthetic_set(data, scale, generator(0, i)) for i in range(5) if synthetic}
    phase, state, steps = Phase("speed", 1, 20, images, 0.01), federation.fresh_state(0), 20 * 5

    def call() -> Numbers:
        cost = federation.run(state, dict.fromkeys(range(5), data), phase, 0, synthetic=sets).cost
        return {"cpu_seconds": cost.cpu_seconds / steps}

    return call


def start_up(*arguments: str) -> Callable[[], Numbers]:
    """(e) A command that computes nothing, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "quickdrop_bench", *arguments]

    def work() -> None:
        subprocess.run(command, check=True, capture_output=True, env=environment)

    return lambda: timed(work, 1)
