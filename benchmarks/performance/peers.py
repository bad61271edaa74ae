"""The same FedAvg by this project and by Flower, pfl and BlazeFL, on the cores of one machine.

``python benchmarks/performance/peers.py`` writes ``results/speed/peers-<instructions>.csv`` (every single measurement)
and the same as ``.md``; the instructions are those of the CPU, as ``avx512``. It needs an environment with the extra
``peers`` and Python 3.12 or later (BlazeFL's bound). ``constraints.txt`` as a whole does not fit the peers: take the
versions of torch, torchvision, lightning, torchmetrics, numpy and pandas from it, so that all share them. Contenders
take turns, each in processes of its own that start anew every time (``contenders.py``); nothing else should run
meanwhile.

Each peer runs as its documentation has it for one machine, and where that leaves a choice, both are measured:

- Flower's ``run_simulation`` with one Ray actor that has all cores, its default on two, or with an actor a core; the
  data and the model stay in the actors, and nothing is evaluated.
- pfl's ``SimulatedBackend`` in one process with all threads, or in a process a core. By itself pfl takes a client's
  batches in the order of its data and no more than one pass; a data set of ours hands it the same batches as the rest.
- BlazeFL in all three modes: in turn, a thread a core, a process a core (shared memory, which it says is the faster).
  Its threads are meant for a Python without the GIL; they are measured with it, on the Python that all share.

Batches are drawn as the engine draws them, from the same streams, so that all do the same steps; a peer does not pay
for a ``DataLoader``. Accuracies are measured outside the time, by one function, and must agree within two points.
Telemetry is switched off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from cases import FOLDER, fabric_of, instructions
from contenders import CONTENDERS, OURS
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from speed_page import table
from workload import CLIENTS, Workload, image_data, new_model

from quickdrop_bench.core.files import write_text
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.harness.provenance import device_name, provenance

TOLERANCE = 0.02
"""Difference of accuracy that is still the same work."""

WORKLOADS = {
    "digits": Workload("digits", "data", width=32, depth=2, batch=32, steps=10, lr=0.2, rounds=10),
    "mnist": Workload("mnist", "data", width=32, depth=3, batch=64, steps=10, lr=0.05, rounds=5),
}


def environments(name: str, cores: int) -> list[dict[str, str]]:
    """The environment variables of each process that is launched for a contender."""
    contender = CONTENDERS[name]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": str(1 if contender.parallel else cores),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    common.pop("PYTHONDONTWRITEBYTECODE", None)  # as for most people, Python keeps what it compiled
    if not (contender.launches and contender.parallel):
        return [common]
    addresses = ",".join([f"localhost:{find_free_network_port()}"] * cores)
    return [{**common, "PFL_WORKER_ADDRESSES": addresses, "PFL_WORKER_RANK": str(rank)} for rank in range(cores)]


def run(name: str, work: Workload, cores: int) -> dict[str, Any]:
    """Let a contender run once.

    Returns:
        What it wrote, and ``launched``: when its processes were launched, on the same clock.

    Raises:
        RuntimeError: it failed.
    """
    script = str(Path(__file__).with_name("contenders.py"))
    workers = str(cores if CONTENDERS[name].parallel else 1)
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "run.pt", Path(folder) / "log"
        with log.open("w", encoding="utf-8") as output:
            launched = time.monotonic()
            processes = [
                subprocess.Popen(
                    [sys.executable, script, name, json.dumps(asdict(work)), workers, "" if rank else str(file)],
                    env=environment,
                    stdout=output,
                    stderr=output,
                )
                for rank, environment in enumerate(environments(name, cores))
            ]
            codes = [process.wait() for process in processes]
        if any(codes) and not file.exists():  # some crash at their end, after all was done
            raise RuntimeError(f"{name} failed:\n{log.read_text(encoding='utf-8')[-4000:]}")
        result: dict[str, Any] = torch.load(file, weights_only=True)
    return {**result, "launched": launched}


def numbers(result: Mapping[str, Any], work: Workload) -> dict[str, float]:
    """The measurements of a run."""
    ends: list[float] = result["ends"]
    assert len(ends) == work.rounds, f"{len(ends)} rounds of {work.rounds}"
    model, data = new_model(work), image_data(work)
    model.load_state_dict(result["state"])
    classes = range(len(data.class_names))
    return {
        "start_up_seconds": result["began"] - result["launched"],
        "first_round_seconds": ends[0] - result["began"],
        "seconds_per_round": statistics.median(after - before for before, after in pairwise(ends)),
        "accuracy": class_accuracy(model, data.test, len(classes)).over(classes),
    }


def measure(names: Sequence[str], works: Mapping[str, Workload], repeats: int, cores: int) -> pd.DataFrame:
    """Let contenders take turns.

    Returns:
        ``section, case, repeat, metric, value, versions, commit``; a section is a workload.
    """
    lines = []
    for section, work in works.items():
        for repeat in range(1, repeats + 1):
            for name in names if repeat % 2 else reversed(names):
                result = run(name, work, cores)
                measured = numbers(result, work)
                print(f"{section} · {name} · {repeat}/{repeats} · {measured}", file=sys.stderr)
                lines += [
                    (section, name, repeat, metric, value, result["versions"]) for metric, value in measured.items()
                ]
    columns = ["section", "case", "repeat", "metric", "value", "versions"]
    return pd.DataFrame(lines, columns=columns).assign(commit=str(provenance(fabric_of(), "")["git_commit"])[:10])


def medians(part: pd.DataFrame) -> pd.DataFrame:
    """By case and metric."""
    return part.groupby(["case", "metric"], sort=False)["value"].median().unstack()


def disagreement(frame: pd.DataFrame) -> float:
    """The largest difference of accuracy between a contender and ours, over workloads."""
    accuracies = [medians(part)["accuracy"] for _, part in frame.groupby("section")]
    return max(float((values - values[OURS]).abs().max()) for values in accuracies)


def verdict(part: pd.DataFrame, metric: str, what: str) -> str:
    """Who beats the better of our settings, in words."""
    values = medians(part)[metric]
    is_ours = values.index.str.startswith(OURS)
    best = values[is_ours].min()
    faster = [f"{name} ({best / value:.2f}×)" for name, value in values[~is_ours].items() if value < best]
    return f"{what}: " + (f"ours loses to {', '.join(faster)}." if faster else "none is faster than ours.")


def section(name: str, part: pd.DataFrame, work: Workload) -> Iterable[str]:
    """A workload's tables."""
    yield f"## {name}"
    yield ""
    yield f"Runs that took turns: {part['repeat'].max()}; commit {', '.join(part['commit'].unique())}."
    yield ""
    yield f"ConvNet {work.depth}×{work.width}, {CLIENTS} clients, Dirichlet(0.1), {work.rounds} rounds. In each, a"
    yield f"client makes {work.steps} steps of plain SGD (η = {work.lr}) with batches of {work.batch}. Seconds per"
    yield "round are medians of the rounds after the first."
    yield ""
    yield from table(part, OURS, "seconds_per_round")
    yield ""
    yield verdict(part, "seconds_per_round", "Rounds")
    yield ""
    yield from table(part, OURS, "start_up_seconds")
    yield ""
    yield verdict(part, "start_up_seconds", "Start-up")
    yield ""
    yield "| | first round (s) | test accuracy |"
    yield "|---|--:|--:|"
    for case, line in medians(part).iterrows():
        yield f"| {case} | {line['first_round_seconds']:.3g} | {line['accuracy']:.2%} |"


def markdown(frame: pd.DataFrame, works: Mapping[str, Workload], cores: int) -> str:
    """The page."""
    cases = list(dict.fromkeys(frame["case"]))
    lines = [
        "# Beside other simulators",
        "",
        f"{device_name(torch.device('cpu'))}, {cores} cores for each contender; medians of runs. Written by",
        "`benchmarks/performance/peers.py`, which says how each is set up.",
        "Start-up is from the launch to the first client's work: imports, actors, data. The allocator's setting that",
        f"ours makes is part of ours. Accuracies differ from ours by at most {disagreement(frame):.2%}.",
    ]
    for name, part in frame.groupby("section", sort=False):
        lines += ["", *section(str(name), part, works[str(name)])]
    lines += ["", "## Settings and versions", "", "| | settings | versions |", "|---|---|---|"]
    versions = frame.drop_duplicates("case", keep="last").set_index("case")["versions"]
    lines += [f"| {case} | {CONTENDERS[case].settings} | {versions[case]} |" for case in cases]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, as digits,mnist")
    parser.add_argument("--contenders", default="", help="parts of contenders' names, as flower,pfl; ours is always in")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="in place of each workload's own")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.cores)
    works = {
        name: replace(work, data_dir=str(options.data_dir.resolve()), rounds=options.rounds or work.rounds)
        for name, work in WORKLOADS.items()
    }
    wanted = options.contenders.lower().split(",")
    names = [name for name in CONTENDERS if name.startswith(OURS) or any(part in name.lower() for part in wanted)]
    path = FOLDER / f"peers-{instructions()}.csv"
    known = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["section"])
    for chosen in options.only.split(","):
        new = measure(names, {chosen: works[chosen]}, options.repeats, options.cores)
        known = pd.concat([known[known["section"] != chosen], new])
        write_text(path, known.to_csv(index=False, float_format="%.6g"))
    page = path.with_suffix(".md")
    write_text(page, markdown(known, works, options.cores))
    print(page.read_text(encoding="utf-8"))
    if disagreement(known) > TOLERANCE:
        sys.exit("a contender did other work: its accuracy is another")


if __name__ == "__main__":
    main()
