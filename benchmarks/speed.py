"""How fast the engine is, beside the plain loop and beside what the machine can do.

``python benchmarks/speed.py`` (``make speed``) writes ``results/speed/speed-<instructions>.csv`` (every single
measurement) and the same as ``.md`` (medians, spread, ratios); the instructions are those of the CPU, as ``avx512``, on
which more depends than on its name. What is compared takes turns: each contender waits in a process of its own, so
that the allocator's settings, threads and peak memory of one do not touch another. Nothing else should run meanwhile.
Images are random where only time is measured; sizes are the paper's unless it says otherwise.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from contenders import split_by_class
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from quickdrop_bench.core.allocator import keep_freed_memory
from quickdrop_bench.core.files import write_text
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
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional import layers
from quickdrop_bench.functional.matching import ClassGradients
from quickdrop_bench.functional.pooling import HalvingPool
from quickdrop_bench.harness.provenance import device_name, provenance
from quickdrop_bench.methods import METHODS, Context
from quickdrop_bench.methods.base import ClientData
from quickdrop_bench.models.convnet import ConvNet

FOLDER = Path(__file__).resolve().parents[1] / "results" / "speed"
BATCH, CLASSES = 256, 10
DISTINCT = 5000
"""Images that are kept in memory where more are needed for their number alone."""

AT_ONCE = 5
"""Clients in a stack: those that each of two processes has of ten."""

STACKED = {
    "step": "a step of 32 images",
    "class-wise step": "the same, with gradients by class (5 classes)",
    "matching": "distance to them and its gradient for 15 synthetic images",
}
"""Work of a client that stacking would change, in words."""

EVERYTHING = 10**6
"""More images than a class ever has."""

Numbers = Mapping[str, float]
Build = Callable[..., Callable[[], Numbers]]


# Contenders: each function prepares something and returns what is called and measured again and again.


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


def at_once(work: str, clients: int) -> Callable[[], Numbers]:
    """(g) Work of several clients on 8×8 images as one batch on one model, by client.

    Models that are stacked are no faster than that: they have weights of their own.
    """
    keep_freed_memory()
    layers.UNFOLDED *= clients  # the same products as for one client, not convolutions class by class
    model = paper_model(32, 1, 8, 2)
    gradients = ClassGradients(model)
    count, sizes = 5 * clients, [7, 7, 6, 6, 6] * clients
    real, synthetic = noise(32 * clients, 1, 8).images, noise(3 * count, 1, 8).images
    labels = torch.arange(count) % CLASSES
    of_real = labels.repeat_interleave(torch.tensor(sizes))

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(real), of_real).backward()

    def class_wise_step() -> list[torch.Tensor]:
        with gradients.recording():
            step()
        return gradients.split(sizes)

    targets = class_wise_step()
    works: dict[str, Callable[[], object]] = {
        "step": step,
        "class-wise step": class_wise_step,
        "matching": lambda: gradients.distance(targets, synthetic, [3] * count, labels.tolist()),
    }
    times = 20
    return lambda: timed(lambda: [works[work]() for _ in range(times)], times * clients)


def start_up(*arguments: str) -> Callable[[], Numbers]:
    """(e) A command that computes nothing, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "quickdrop_bench", *arguments]

    def work() -> None:
        subprocess.run(command, check=True, capture_output=True, env=environment)

    return lambda: timed(work, 1)


# Taking turns.


def _serve(connection: Connection, build: Build, options: Mapping[str, Any], threads: int) -> None:
    torch.set_num_threads(threads)
    call = build(**options) if isinstance(options, dict) else build(*options)
    connection.send("ready")
    while connection.recv():
        connection.send(dict(call()))


class Contender:
    """A function that waits in a process of its own."""

    def __init__(self, build: Build, options: Any, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build, options, threads))
        self._process.start()
        assert self._connection.recv() == "ready"

    def __call__(self) -> Numbers:
        """Let it run once."""
        self._connection.send(True)
        numbers: Numbers = self._connection.recv()
        return numbers

    def close(self) -> None:
        """End the process."""
        self._connection.send(False)
        self._process.join()


Case = tuple[str, Build, Any]
"""Name, function and its options."""


def measure(section: str, cases: Sequence[Case], repeats: int, threads: int) -> pd.DataFrame:
    """Let all cases of a section take turns.

    Returns:
        ``section, case, repeat, metric, value, commit``; repeat 0 is the warm-up.
    """
    contenders = {name: Contender(build, options, threads) for name, build, options in cases}
    lines = []
    try:
        for repeat in range(repeats + 1):
            order = list(contenders) if repeat % 2 else list(reversed(contenders))
            for name in order:
                numbers = contenders[name]()
                print(f"{section} · {name} · {repeat}/{repeats} · {dict(numbers)}", file=sys.stderr)
                lines += [(section, name, repeat, metric, value) for metric, value in numbers.items()]
    finally:
        for contender in contenders.values():
            contender.close()
    names = list(contenders)
    lines.sort(key=lambda line: (line[2], names.index(line[1])))
    commit = str(provenance(fabric_of(), "")["git_commit"])[:10]
    return pd.DataFrame(lines, columns=["section", "case", "repeat", "metric", "value"]).assign(commit=commit)


# Sections.

Point = tuple[int, int, float | None]
"""Clients, images of each, and the scale of those that distil."""


def instructions() -> str:
    """Of the CPU, as ``avx512``."""
    return torch.backends.cpu.get_cpu_capability().lower()


def step_flops() -> float:
    """Of one training step, as PyTorch counts them."""
    model, data = paper_model(), noise(BATCH)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(data.images), data.labels).backward()
    return float(counter.get_total_flops())


def step(repeats: int, threads: int) -> pd.DataFrame:
    """(a) A training step; in bfloat16 where the CPU has it, since an imitated step takes many seconds."""
    cases: list[Case] = [("plain loop", plain_step, {"steps": 4})]
    for precision in ("32-true", "bf16-mixed") if instructions() != "avx2" else ("32-true",):
        of_ours = {"steps": 4, "precision": precision}
        cases.append((f"engine, {precision}", engine_step, of_ours))
        cases.append((f"{precision}, torch.compile", engine_step, {**of_ours, "compiled": True}))
    cases.append(("machine's limit", matrix_product, {"flops": step_flops()}))
    return measure("step", cases, repeats, threads)


def round_(repeats: int, threads: int) -> pd.DataFrame:
    """(a) A round of ten clients."""
    cases: list[Case] = [
        ("plain loop", plain_round, {"clients": 10, "steps": 2}),
        ("engine", engine_round, {"clients": 10, "steps": 2}),
    ]
    return measure("round", cases, repeats, threads)


def distillation(repeats: int, threads: int) -> pd.DataFrame:
    """(b) With and without, N = 10, B = 256, by s and by the size of B_S."""
    same = {"clients": 10, "steps": 2, "images": 50_000, "distinct": DISTINCT}
    cases: list[Case] = [("none", engine_round, same)]
    cases += [(f"s = {s}, all", engine_round, {**same, "scale": float(s)}) for s in (100, 1000)]
    cases += [(f"s = 100, B_S ≤ {b}", engine_round, {**same, "scale": 100.0, "synthetic_batch": b}) for b in (16, 4)]
    return measure("distillation", cases, repeats, threads)


def request(repeats: int, threads: int) -> pd.DataFrame:
    """(c) A request."""
    paper = {"images": 50_000, "side": 32, "channels": 3, "width": 128, "depth": 3, "batch": 256}
    mnist = {"images": 50_000, "side": 28, "channels": 1, "width": 32, "depth": 3, "batch": 256}
    digits = {"images": 1442, "side": 8, "channels": 1, "width": 32, "depth": 2}
    cases: list[Case] = [
        ("paper's sizes: s = 100, B = 256", request_stages, paper),
        ("MNIST, width 32: s = 100, B = 256", request_stages, mnist),
        ("digits as in `quick`: s = 10, B = 32", request_stages, {**digits, "batch": 32, "scale": 10.0}),
        ("digits: s = 100, B = 256", request_stages, {**digits, "batch": 256}),
    ]
    return measure("request", cases, repeats, threads)


def clients(repeats: int, threads: int) -> pd.DataFrame:
    """(d) Cost against the number of clients (20 images each), images per client, and s."""
    small = {"steps": 1, "width": 64, "batch": 32, "alpha": None}
    scales = (None, 10.0)
    by_count: list[Point] = [(n, 20, s) for n in (10, 30, 100, 300, 1000) for s in scales]
    by_size: list[Point] = [(10, m, s) for m in (60, 200, 600, 2000) for s in scales]
    by_scale: list[Point] = [(10, 600, s) for s in (2.0, 50.0)]

    def case(count: int, each: int, scale: float | None) -> Case:
        name = f"{count} clients, {each} images each" + (f", distilling at s = {scale:g}" if scale else "")
        return name, engine_round, {**small, "clients": count, "images": count * each, "scale": scale}

    # All twenty at once would not fit into memory.
    groups = (by_count, by_size + by_scale)
    return pd.concat(
        [measure("clients", [case(*point) for point in group], min(repeats, 3), threads) for group in groups]
    )


def start(repeats: int, threads: int) -> pd.DataFrame:
    """(e) Start-up."""
    cases: list[Case] = [("--help", start_up, ("--help",)), ("presets", start_up, ("presets",))]
    return measure("start-up", cases, repeats, threads)


def stacking(repeats: int, threads: int) -> pd.DataFrame:
    """(g) Several clients at once, in one thread: on 8×8 images the cores work on clients, or seeds, of their own."""
    cases: list[Case] = [
        (f"{work}, {n} at once", at_once, {"work": work, "clients": n}) for work in STACKED for n in (1, AT_ONCE)
    ]
    return measure("stacking", cases, repeats, 1)


def judging(repeats: int, threads: int) -> pd.DataFrame:
    """(f) Evaluation."""
    return measure("evaluation", [("paper's sizes", evaluation, {})], repeats, threads)


SECTIONS = {
    "step": step,
    "round": round_,
    "distillation": distillation,
    "request": request,
    "clients": clients,
    "start-up": start,
    "evaluation": judging,
    "stacking": stacking,
}


# What people read.


def table(frame: pd.DataFrame, baseline: str | None = None, metric: str = "seconds") -> Iterable[str]:
    """Median and spread by case, and the ratio to a baseline, repeat by repeat."""
    chosen = frame[(frame["metric"] == metric) & (frame["repeat"] > 0)]
    wide = chosen.pivot_table(index="repeat", columns="case", values="value", sort=False)
    yield f"| | {metric.replace('_', ' ')}: median (least to most) |" + (f" {baseline} ÷ it |" if baseline else "")
    yield "|---|--:|" + ("--:|" if baseline else "")
    for case in wide:
        values = wide[case]
        line = f"| {case} | {values.median():.4g} ({values.min():.4g} to {values.max():.4g}) |"
        if baseline:
            line += f" {(wide[baseline] / values).median():.2f}× |"
        yield line


def markdown(frame: pd.DataFrame) -> str:
    """The page."""
    by = {str(name): part for name, part in frame.groupby("section", sort=False)}
    lines = [
        "# Speed",
        "",
        f"{device_name(torch.device('cpu'))}, torch {torch.__version__}; medians of repeats that took turns, after an",
        "uncounted one. Written by `make speed`.",
    ]
    for name, (title, page) in PAGES.items():
        if name in by:
            repeats, commits = by[name]["repeat"].max(), ", ".join(by[name]["commit"].unique())
            lines += ["", f"## {title}", "", f"Repeats: {repeats}; commit {commits}.", "", *page(by[name])]
    return "\n".join([*lines, ""])


def step_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (a)."""
    yield from table(part, "plain loop")
    yield ""
    yield "The limit is the step's floating-point operations at the rate of the best large matrix product. Convolutions"
    yield "of the library may do better, with fewer operations (Winograd) than are counted."


def distillation_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (b)."""
    seconds = part[part["metric"] == "seconds"].pivot_table(index="repeat", columns="case", values="value", sort=False)
    median = part.groupby(["case", "metric"])["value"].median().unstack()
    yield "| | seconds | synthetic images a step | share: (with − without) ÷ with | booked in the rows |"
    yield "|---|--:|--:|--:|--:|"
    counted = seconds[seconds.index > 0]
    for case in map(str, seconds):
        own = median.loc[case]
        share = float((1 - counted["none"] / counted[case]).median())
        values = f"{counted[case].median():.2f} ({counted[case].min():.2f} to {counted[case].max():.2f})"
        booked = own["booked_as_distillation"] / own["seconds"]
        yield f"| {case} | {values} | {own['synthetic_images_per_step']:.0f} | {share:.0%} | {booked:.0%} |"


def request_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (c)."""
    yield "| | unlearning, ms: cold, warm | recovery, ms: cold, warm | gradients | µs each | a training step's | ÷ |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for case in dict.fromkeys(part["case"]):
        wide = part[part["case"] == case].pivot_table(index="repeat", columns="metric", values="value")
        cold, warm = wide.loc[0], wide[wide.index > 0].median()
        stages = [f"{1e3 * cold[n]:.1f}, {1e3 * warm[n]:.1f}" for n in ("unlearning_seconds", "recovery_seconds")]
        count = int(warm["unlearning_samples"] + warm["recovery_samples"])
        each, large = 1e6 * warm["seconds_per_sample_gradient"], 1e6 * warm["large_batch_seconds_per_sample_gradient"]
        yield f"| {case} | {stages[0]} | {stages[1]} | {count} | {each:.0f} | {large:.0f} | {each / large:.2f} |"


def clients_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (d)."""
    median = part[part["repeat"] > 0].groupby(["case", "metric"], sort=False)["value"].median().unstack()
    yield "| | seconds | data and synthetic sets (MB) | peak memory of the process (MB) |"
    yield "|---|--:|--:|--:|"
    for case in dict.fromkeys(part["case"]):
        line = median.loc[case]
        yield f"| {case} | {line['seconds']:.3f} | {line['data_bytes'] / 1e6:.0f} | {line['peak_bytes'] / 1e6:.0f} |"


def evaluation_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (f)."""
    yield from [*table(part, None, "accuracy_per_image"), "", *table(part, None, "attack_per_image")]


def stacking_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (g)."""
    wide = part[part["repeat"] > 0].pivot_table(index="repeat", columns="case", values="value")
    yield f"| | ms a client, alone | {AT_ONCE} at once | ÷ |"
    yield "|---|--:|--:|--:|"
    for work, what in STACKED.items():
        alone, together = 1e3 * wide[f"{work}, 1 at once"], 1e3 * wide[f"{work}, {AT_ONCE} at once"]
        yield f"| {what} | {alone.median():.2f} | {together.median():.2f} | {(alone / together).median():.2f}× |"


PAGES: dict[str, tuple[str, Callable[[pd.DataFrame], Iterable[str]]]] = {
    "step": ("(a) A training step: ConvNet 3×128, 32×32, B = 256", step_page),
    "round": (
        "(a) A round: 10 clients, two steps each",
        lambda part: table(part, "plain loop", "wall_seconds"),
    ),
    "distillation": (
        "(b) Distillation: N = 10, B = 256, α = 0.1, 50 000 images, two steps a client",
        distillation_page,
    ),
    "request": (
        "(c) A QuickDrop request: 10 clients, a step of ascent, two rounds of two steps of recovery",
        request_page,
    ),
    "clients": ("(d) A round against clients, images per client and s: width 64, B = 32, one step, IID", clients_page),
    "start-up": ("(e) Start-up", table),
    "evaluation": ("(f) Evaluation, per image", evaluation_page),
    "stacking": (
        f"(g) What stacking clients could save at most: {AT_ONCE} clients as one batch on one model, 8×8, width 32",
        stacking_page,
    ),
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, as step,round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    wanted = options.only.split(",")
    path = FOLDER / f"speed-{instructions()}.csv"
    known = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["section"])
    for name in wanted:
        new = SECTIONS[name](options.repeats, options.threads)
        known = pd.concat([known[known["section"] != name], new])
        write_text(path, known.to_csv(index=False, float_format="%.6g"))
    page = markdown(known)
    write_text(path.with_suffix(".md"), page)
    print(page)


if __name__ == "__main__":
    main()
