"""What Fabric callbacks are told about runs; those about rounds come from the federation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

TRAINING = "fl-training"
EVALUATION = "evaluation"
UNLEARNING = "unlearning"


@dataclass(frozen=True)
class RequestInfo:
    """A training, an evaluation or a request, as callbacks hear of it.

    The hooks, all of whose arguments are keywords:

    - ``on_run_start(run)``: a federation is about to be trained or loaded, the trained model to be evaluated, or a
      request to be served. A federation that is loaded has no rounds.
    - ``on_search_start(run)``: before a request's ``on_run_start``: with the tuned protocol, settings are searched for.
    - ``on_federation_ready(run, context, trained, data, folder)``: it was trained or loaded; ``run`` is of kind
      ``fl-training``.
    - ``on_stage_end(run, stage, values, accuracy)``: a stage ended: numbers by metric, and a
      :class:`~quickdrop_bench.evaluation.accuracy.ClassAccuracy` on the test set, or None if it was not evaluated.
    - ``on_run_end(run, rows, oracle)``: its rows are on disk; ``oracle`` are those of the oracle's run of the same
      request and seed, if there are any.

    Between them, ``on_round_end(federation, info)`` is called after every round, and
    ``on_initialisation_end(done, of, distance)`` after every initialisation of fine-tuning. No hook is called inside a
    timed stage.

    Attributes:
        kind: ``fl-training``, ``evaluation`` (of the trained model before a request) or ``unlearning``;
            ``unlearn`` or ``relearn`` for a request that a command of that name serves.
        method: as in rows; ``original`` in a training and an evaluation.
        seed: of the federation.
        step: index of the request in its sequence.
        requests: how many the sequence has.
        columns: what its rows have in common, without provenance.
        settings: the resolved ``federation``, ``hyper_parameters``, ``rules``, and ``provenance``.
    """

    kind: str
    method: str
    seed: int
    step: int
    requests: int
    columns: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What people read: the method's name, or ``fl-training``."""
        return TRAINING if self.kind == TRAINING else self.method

    def using(self, hyper_parameters: Mapping[str, Any]) -> RequestInfo:
        """The same run with the settings that its method was found to need."""
        return replace(self, settings={**self.settings, "hyper_parameters": dict(hyper_parameters)})
