"""A stand-in for W&B that keeps a record of its runs and fails on demand, and what it is told of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from quickdrop_bench.harness.callbacks import UNLEARNING, RequestInfo


@dataclass
class Recorded:
    """A W&B run as it was described, and what it was told."""

    wandb: Wandb
    mode: str
    about: dict[str, Any]
    dir: str
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    exit_code: int | None = None
    id: str = "id"

    @property
    def name(self) -> str:
        return str(self.about["name"])

    @property
    def kind(self) -> str:
        return str(self.about["job_type"])

    def logged(self, key: str) -> list[Any]:
        return [line[key] for line in self.history if key in line]

    def define_metric(self, name: str, step_metric: str | None = None, summary: str | None = None) -> None: ...

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.wandb.try_to("log")
        self.history.append(dict(metrics))

    def log_artifact(self, artifact: Any) -> None:
        self.wandb.try_to("log_artifact")
        self.made.append(artifact)

    def finish(self, exit_code: int = 0) -> None:
        self.wandb.try_to("finish")
        assert self.exit_code is None, "it was finished before"
        self.exit_code = exit_code


class Wandb:
    """Stands in for what the package does: keeps its runs, and lets calls fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mode, self.has_key = "online", False
        self.runs: list[Recorded] = []
        self.left: dict[str, int] = {}
        """Calls that fail, and how often they still work before."""

    def try_to(self, call: str) -> None:
        if call in self.left and (left := self.left[call]) <= 0:
            raise RuntimeError(f"{call}: no\nluck ({left})")
        self.left = {name: left - (name == call) for name, left in self.left.items()}

    def setup(self, settings: Any) -> SimpleNamespace:
        assert settings.silent
        given = "mode" in settings.model_fields_set
        return SimpleNamespace(settings=SimpleNamespace(mode=settings.mode if given else self.mode))

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        assert not verify
        return self.has_key

    def init(self, *, mode: str, **about: Any) -> Recorded:
        self.try_to("init")
        self.try_to(f"init {mode}")
        run = Recorded(self, mode, about, str(self.folder / f"run-{len(self.runs)}" / "files"))
        run.config |= about["config"]
        self.runs.append(run)
        return run

    def of_kind(self, kind: str) -> list[Recorded]:
        return [run for run in self.runs if run.kind == kind]


COLUMNS = {"artefact": "table2", "dataset": "digits", "clients": 3, "distribution": "dirichlet-0.1", "fine_tuning": 0}
COLUMNS |= {"request": "class-9", "protocol": "preset", "scale": 10.0}


def event(
    kind: str = UNLEARNING, method: str = "quickdrop", seed: int = 1, requests: int = 1, **columns: Any
) -> RequestInfo:
    settings = {"provenance": {"preset": "quick"}}
    return RequestInfo(kind, method, seed, 0, requests, {**COLUMNS, **columns}, settings)
