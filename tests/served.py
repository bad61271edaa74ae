"""A federation that serves requests, trained once per test run, and what tests ask of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from quickdrop_bench.cli.resolve import federation_spec, methods_of, options_of
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.harness.measure import measure
from quickdrop_bench.harness.run_spec import Rules
from quickdrop_bench.harness.session import Session
from quickdrop_bench.methods import METHODS
from quickdrop_bench.serving import TrainedRun
from quickdrop_bench.store.rows import RowFile
from tests.conftest import TINY

OPTIONS = [*TINY, "--min-client-size", "5", "--record-every", "1"]
CLASS_9, CLASS_3, CLIENT_0 = (UnlearningRequest.parse(text) for text in ("class-9", "class-3", "client-0"))
SAMPLES = UnlearningRequest("sample", tuple(range(0, 300, 5)))
REQUESTS = {"class": CLASS_9, "client": CLIENT_0, "sample": SAMPLES}
CONTROLS = ("none", "recovery-only")
CASES = [(name, level) for name in METHODS if name not in CONTROLS for level in sorted(METHODS[name].levels)]
TABLES = {"class": "2", "client": "4", "sample": "4"}
"""Whose settings requests of a level take."""
NAME = "federation"
"""Of the folder of each test's own copy, in ``artifacts``."""


@dataclass(frozen=True)
class Measured:
    """What the harness measured on the federation in ``folder``: rows by requests and method."""

    folder: Path
    rows: dict[tuple[str, str], dict[tuple[str, str], float]]


def experiment(
    level: str, requests: tuple[UnlearningRequest | Samples, ...], names: list[str] | None = None
) -> Experiment:
    args = options_of(["table", TABLES[level], *OPTIONS], f"table{TABLES[level]}")
    methods = {n: m for n, m in methods_of(args).items() if level in m.levels and (names is None or n in names)}
    rules = Rules(args.protocol, args.patience, relearn=True)
    spec = federation_spec(args)
    return Experiment(f"table{TABLES[level]}", "quick", spec, requests, methods, (1,), Path("data"), "32-true", rules)


def measure_all(place: Path) -> Measured:
    """Every method on every level, and QuickDrop on two requests in a row."""
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    experiments = [experiment(level, (request,)) for level, request in REQUESTS.items()]
    experiments.append(experiment("class", (CLASS_9, CLASS_3), ["quickdrop"]))
    with torch.random.fork_rng(devices=[]):
        for k, e in enumerate(experiments):
            session = Session(e, Fabric(accelerator="cpu", devices=1), place / "artifacts")
            rows = RowFile(place / f"{k}.jsonl")
            assert measure(session, rows, list(e.methods))
            for row in rows.rows:
                found[row["request"], row["method"]][row["stage"], row["metric"]] = row["value"]
    (folder,) = (place / "artifacts").glob("[!.]*")
    return Measured(folder, dict(found))


def served(folder: Path, *requests: UnlearningRequest) -> TrainedRun:
    run = TrainedRun(folder)
    for request in requests:
        run.unlearn(request)
    return run


def without_data(folder: Path) -> TrainedRun:
    run = TrainedRun(folder)
    run.data = None
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the one that commands lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def versions(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.startswith("versions/")}


def refused(folder: Path, match: str, call: Callable[[], object]) -> None:
    """In one sentence, and nothing has changed."""
    before = contents(folder)
    with pytest.raises(BadInput, match=match):
        call()
    assert contents(folder) == before


class Participants:
    """Fabric callback: who took part, by phase."""

    def __init__(self) -> None:
        self.by_phase: dict[str, set[int]] = defaultdict(set)

    def on_round_end(self, federation: Federation, info: RoundInfo) -> None:
        self.by_phase[info.phase.name] |= set(info.participants)


def watched(folder: Path) -> tuple[TrainedRun, dict[str, set[int]]]:
    seen = Participants()
    return TrainedRun(folder, Fabric(accelerator="cpu", devices=1, callbacks=[seen])), seen.by_phase


def sentence(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("quickdrop-bench: ")
    assert line.endswith(".")
    assert "Traceback" not in line
    return line
