"""What one run on a federation measures, and the hash that identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.harness.sources import digest, source_digest

HARNESS = Path(__file__).parent

REQUEST = (HARNESS / "request.py", HARNESS / "tuning.py")
"""Code that, with all that it imports and the method's own file, decides what a run makes of the model."""

LETTERS = ("letter-steps", "letter-passes")
"""The paper's letter, with T read in two ways; settings that presets give methods have no part in it."""

PROTOCOLS = ("preset", "tuned", *LETTERS)


@dataclass(frozen=True)
class Rules:
    """How every method is run.

    Attributes:
        protocol: where the settings of the methods come from: ``preset`` (the preset's files), ``tuned`` (a search
            on training data), ``letter-steps`` or ``letter-passes`` (the paper's own), see
            :mod:`quickdrop_bench.harness.tuning`.
        patience: descents end after this many rounds without progress; None makes all rounds.
        relearn: learn again afterwards what was forgotten (§4.7).
        each_round: evaluate after every round too (Figures 2 and 4), not only after every stage.
    """

    protocol: str = "preset"
    patience: int | None = None
    relearn: bool = False
    each_round: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise BadInput("--protocol", self.protocol, f"use one of {', '.join(PROTOCOLS)}")
        if self.patience is not None:
            positive("--patience", self.patience, at_least=1)


@dataclass(frozen=True)
class RunSpec:
    """One method serving requests on one trained federation.

    Attributes:
        federation_hash: of the trained federation.
        method: its name; None stands for the original model, which is only evaluated.
        hyper_parameters: of the method.
        source: path of the method's own module.
        requests: what is to be forgotten, in order; the rows are about the last one.
        rules: how methods are run.
        tuned_on: seed of the federation on which the tuned protocol searches; None for the other protocols.
    """

    federation_hash: str
    method: str | None
    hyper_parameters: Mapping[str, Any]
    source: Path | None
    requests: tuple[UnlearningRequest | Samples, ...]
    rules: Rules
    tuned_on: int | None = None

    @property
    def hash(self) -> str:
        """Identifies the run's rows."""
        return digest(
            {
                "federation": self.federation_hash,
                "method": self.method,
                "hyper_parameters": as_numbers(self.hyper_parameters),
                "requests": [str(request) for request in self.requests],
                "rules": asdict(self.rules),
                "tuned_on": self.tuned_on,
                "source": source_digest(*REQUEST, *([self.source] if self.source else [])),
            }
        )


def as_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """1 as 1.0: which of them a preset or an option gives makes no difference."""
    return {n: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for n, v in values.items()}
