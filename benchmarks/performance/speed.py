"""How fast the engine is, beside the plain loop and beside what the machine can do.

``python benchmarks/performance/speed.py`` (``make speed``) writes ``results/speed/speed-<instructions>.csv`` (every
single measurement) and the same as ``.md`` (medians, spread, ratios); the instructions are those of the CPU, as
``avx512``, on which more depends than on its name. What is compared takes turns: each contender waits in a process of
its own, so that the allocator's settings, threads and peak memory of one do not touch another. Nothing else should run
meanwhile. Images are random where only time is measured; sizes are the paper's unless it says otherwise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from cases import (
    BATCH,
    DISTINCT,
    FOLDER,
    Build,
    Numbers,
    as_written,
    at_once,
    engine_round,
    engine_step,
    evaluation,
    fabric_of,
    instructions,
    matrix_product,
    noise,
    paper_model,
    plain_round,
    plain_step,
    request_stages,
    start_up,
)
from speed_page import STACKED, markdown
from torch.utils.flop_counter import FlopCounterMode

from quickdrop_bench.core.files import write_text
from quickdrop_bench.harness.provenance import provenance


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


def step_flops() -> float:
    """Of one training step, as PyTorch counts them, with its own pooling: ours multiplies mostly by zeros."""
    model, data = as_written(paper_model()), noise(BATCH)
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
    """(g) Clients in stacks, in one thread: on 8×8 images the cores work on clients, or seeds, of their own."""
    cases: list[Case] = [
        (f"{sizes[0]} + {sizes[1]}, {how}", at_once, {"images": sizes[0], "synthetic": sizes[1], "stacked": stacked})
        for sizes in STACKED
        for how, stacked in {"alone": False, "stacked": True}.items()
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
