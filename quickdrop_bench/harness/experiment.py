"""What is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from inspect import getfile
from pathlib import Path
from typing import Any

from quickdrop_bench.data.datasets import class_names, dataset_label, fingerprint
from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.harness.federation_spec import FederationSpec, kept
from quickdrop_bench.harness.run_spec import Rules, RunSpec, as_numbers
from quickdrop_bench.harness.sources import digest
from quickdrop_bench.methods import Method
from quickdrop_bench.methods.registry import check_support

ORACLE = "retrain-or"
"""The method that every other one is compared with: retraining without what is to be forgotten."""

ORIGINAL = "original"
"""The method name of rows about the trained model before any request."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Runs of one artefact: every method × every seed on one kind of federation and one sequence of requests.

    Attributes:
        artefact: e.g. ``table2``.
        preset: name of the preset, recorded in the rows.
        federation: the federation spec.
        requests: what to forget, in order; rows are written about each, under the requests up to it. Which samples
            those of level ``sample`` mean depends on the seed.
        methods: hyper-parameter objects by name, in the order of the table.
        seeds: the runs.
        data_dir: where the data set lies.
        precision: Fabric's precision, and on a GPU that and whether TF32 is allowed: what decides rounding.
        rules: how methods are run.
        usual: the same with the preset's own values, from which rows say what differs; None if nothing does.
        swept: fields of the federation that the artefact varies on purpose; rows have columns for them.
    """

    artefact: str
    preset: str
    federation: FederationSpec
    requests: tuple[UnlearningRequest | Samples, ...]
    methods: Mapping[str, Method]
    seeds: tuple[int, ...]
    data_dir: Path
    precision: str
    rules: Rules
    usual: Experiment | None = None
    swept: frozenset[str] = frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """Of the data; read once, because image folders are hashed."""
        return fingerprint(self.federation.dataset, self.data_dir, self.federation.image_size)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the classes' numbers; no image is read."""
        return class_names(self.federation.dataset, self.data_dir)

    def check(self, methods: Iterable[str]) -> None:
        """Raise before any compute if one of these methods cannot serve a request."""
        available = kept(self.federation, recorded=bool(self.federation.record_every))
        for name in methods:
            for request in self.requests:
                check_support(name, request, available)

    def federation_hash(self, seed: int, federation: FederationSpec | None = None) -> str:
        """Name of the trained federation's folder; of another spec's on the same data if one is given."""
        return (federation or self.federation).hash(self.fingerprint, seed, self.precision)

    def run_spec(self, method: str, seed: int, request: int = -1) -> RunSpec:
        """The spec of one method's run up to a request, or of the evaluation of the original model."""
        requests = (*self.requests[:request], self.requests[request])
        if method == ORIGINAL:
            rules = Rules(self.rules.protocol, each_round=self.rules.each_round)
            return RunSpec(self.federation_hash(seed), None, {}, None, requests, rules)
        hyper_parameters = self.methods[method]
        return RunSpec(
            federation_hash=self.federation_hash(seed),
            method=method,
            hyper_parameters=asdict(hyper_parameters),  # type: ignore[call-overload]
            source=Path(getfile(type(hyper_parameters))),
            requests=requests,
            rules=replace(self.rules, relearn=self.relearns(method)),
            tuned_on=self.seeds[0] if self.rules.protocol == "tuned" else None,
        )

    def relearns(self, method: str) -> bool:
        """Whether a method's run ends with relearning."""
        return self.rules.relearn and self.methods[method].can_relearn

    def identity(self, request: int = -1) -> dict[str, Any]:
        """The columns that tell this experiment's rows about a request from others in the same file."""
        requests = (*self.requests[:request], self.requests[request])
        return {
            "artefact": self.artefact,
            "dataset": dataset_label(self.federation.dataset, self.data_dir),
            "clients": self.federation.clients,
            "distribution": self.federation.distribution,
            "request": ">".join(map(str, requests)),
            "protocol": self.rules.protocol,
            **self.setting,
        }

    @cached_property
    def setting(self) -> dict[str, str]:
        """The columns of rows that may stand in one block of a table: a hash, and what differs from the preset."""
        own = {"precision": self.precision, "patience": self.rules.patience}
        own |= self.federation.setting(self.swept)
        e = self.usual or self
        usual = {"precision": _rounding(e.precision), "patience": e.rules.patience, **asdict(e.federation)}
        changed = changes({**own, "precision": _rounding(self.precision)}, usual)
        return {"setting": digest({**own, "data": self.fingerprint}), "changes": changed}

    def method_setting(self, method: str) -> dict[str, str]:
        """The same for a method's hyper-parameters, which must be equal to be averaged."""
        if method == ORIGINAL:
            return {"method_setting": "", "method_changes": ""}
        e = self.usual or self
        own, usual = asdict(self.methods[method]), asdict(e.methods[method])  # type: ignore[call-overload]
        if self.rules.protocol == "tuned":  # it searches on the first seed
            own, usual = {**own, "search_seed": self.seeds[0]}, {**usual, "search_seed": e.seeds[0]}
        return {"method_setting": digest(as_numbers(own)), "method_changes": changes(own, usual)}

    def spec_hashes(self, request: int) -> list[str]:
        """Of every run about a request, whether or not it was measured."""
        runs = ((m, seed, request) for seed in self.seeds for m in (ORIGINAL, *self.methods))
        return [self.run_spec(*run).hash for run in runs]


def _rounding(precision: str) -> str:
    """The precision whatever the device, which rows name beside it."""
    return precision.replace(" on CUDA", "").replace(" on MPS", "")


def changes(own: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """What differs from the preset, for headings.

    Args:
        own: values by name.
        usual: the preset's; at least those names.

    Example:
        >>> changes({"rounds": 2, "lr": 0.1, "distill": False}, {"rounds": 30, "lr": 0.1, "distill": True})
        'rounds 2, distill false'
    """
    return ", ".join(f"{name} {_text(value)}" for name, value in own.items() if value != usual[name])


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
