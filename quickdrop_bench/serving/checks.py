"""Whether a request can be served: all that can be said before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.requests import UnlearningRequest, forget_part, forgotten_rows
from quickdrop_bench.harness.federation_spec import ORIGINALS, kept
from quickdrop_bench.harness.presets import part
from quickdrop_bench.harness.request import RELEARN, UNLEARN, Deployment, needs
from quickdrop_bench.methods import METHODS, Method
from quickdrop_bench.methods.registry import SMALL_SETS, StageResult, check_support

MOST_ROWS = 40_000
"""Forgotten samples of a model version: its file says in its header which they are, and headers are bounded."""

ROUNDS = {"unlearning": "unlearn_rounds", "recovery": "recover_rounds", "relearning": "relearn_rounds"}
"""The field of methods that says how many rounds a stage has."""


def method_name(method: Method) -> str:
    """Under which a method is registered; :class:`BadInput` for anything else."""
    for name in METHODS:
        if METHODS[name] is type(method):
            return name
    raise BadInput("method", repr(method), "a method is needed, as run.method('quickdrop') gives it")


def check_settings(settings: Mapping[str, Any], folder: Path) -> None:
    """Raise :class:`BadInput` unless every method can be built with what a federation in a folder keeps for it."""
    try:
        _ = [METHODS[name](**part(settings, name.replace("-", "_"))) for name in METHODS]
    except (TypeError, ValueError) as error:
        raise BadInput("RUN", folder, f"no request is served with what config.yaml sets ({error})") from error


def check_form(request: UnlearningRequest) -> None:
    """Raise :class:`BadInput` for what type checkers would find: no request, or targets that are no whole numbers."""
    if not isinstance(request, UnlearningRequest):
        raise BadInput("request", repr(request), "one is needed, as UnlearningRequest('class', (9,))")
    if not (isinstance(request.targets, tuple) and all(type(target) is int for target in request.targets)):
        raise BadInput(request.option, repr(request.targets), "a tuple of whole numbers is needed, as (9,)")


def check(
    deployment: Deployment,
    action: str,
    request: UnlearningRequest,
    method: Method,
    gone: Sequence[UnlearningRequest],
    absent: Collection[int],
    data_dir: Path,
) -> None:
    """Raise :class:`BadInput` unless a request can be served; the sentence says why not.

    Args:
        deployment: at which it arrives.
        action: ``unlearn`` or ``relearn``.
        request: what to forget, or to learn again.
        method: that is to serve it.
        gone: what is forgotten when it arrives.
        absent: clients that cannot take part now.
        data_dir: where the data set was looked for.
    """
    info, name = deployment.trained.data, method_name(method)
    request.check(len(info.class_names), deployment.spec.clients, info.train_images)
    _check_targets(action, request, gone, info.class_names)
    if rows := forgotten_rows((*gone, request)):
        if deployment.data is None:
            allowed = f"which class a sample is of stands in the data, and {info.name} is not there"
            raise BadInput("--data-dir", data_dir, allowed)
        if len(rows) > MOST_ROWS:
            raise BadInput("--samples", len(rows), f"a model keeps at most {MOST_ROWS} forgotten samples in mind")
    if needs(method, action) & ORIGINALS and deployment.data is None:
        allowed = f"{name} needs original data, and {info.name} is not there; quickdrop does without"
        raise BadInput("--data-dir", data_dir, allowed)
    try:
        check_support(name, request, kept(deployment.spec, recorded=deployment.updates.is_dir()))
    except BadInput as error:
        raise BadInput("--method", error.value, error.allowed) from error
    if action == RELEARN and not method.can_relearn:
        raise BadInput("--method", name, "it cannot learn again")
    _check_present(deployment, request, name, needs(method, action), absent)


def _check_targets(
    action: str, request: UnlearningRequest, gone: Sequence[UnlearningRequest], names: Sequence[str]
) -> None:
    known = {target for r in gone if r.level == request.level for target in r.targets}
    for target in request.targets:
        if (target in known) == (action == UNLEARN):
            state = "forgotten already" if action == UNLEARN else "not forgotten"
            named = request.target_name(target, names)
            raise BadInput(request.option, named, f"this is {state}; see the command 'show'")


def _check_present(
    deployment: Deployment, request: UnlearningRequest, name: str, needed: Collection[str], absent: Collection[int]
) -> None:
    for client in absent:
        if not 0 <= client < deployment.spec.clients:
            raise BadInput("--absent", client, f"between 0 and {deployment.spec.clients - 1}")
    if not set(needed) & (SMALL_SETS | {"forget-data"}):
        return
    if request.level == "client" and (away := sorted(set(request.targets) & set(absent))):
        raise BadInput("--client", away[0], f"it is absent, and {name} needs its data")
    clients = deployment.clients.items()
    if request.level == "class":
        holders = {i for i, c in clients if len(c.subset.with_classes(request.targets, keep=True))}
    else:
        holders = {i for i, c in clients if len(forget_part(c.original, i, request))}
    if request.level == "sample" and (away := sorted(holders & set(absent))):
        raise BadInput("--absent", away[0], f"it holds samples that are to be forgotten, and {name} needs them")
    if holders and not holders - set(absent):
        named = request.target_name(request.targets[0], deployment.trained.data.class_names)
        raise BadInput(request.option, named, "all clients that hold it are absent")


def check_stages(
    request: UnlearningRequest,
    method: Method,
    results: Mapping[str, StageResult],
    names: Sequence[str],
    absent: Collection[int],
) -> None:
    """Raise :class:`BadInput` if one of a request's stages changes nothing."""
    # A stage without a round may be the server's own.
    idle = [stage for stage, r in results.items() if not (r.cost.rounds or r.cost.seconds or r.diverged)]
    if not idle:
        return
    if getattr(method, ROUNDS[idle[0]], None) == 0:
        option = f"--{method_name(method)}.{ROUNDS[idle[0]].replace('_', '-')}"
        raise BadInput(option, 0, f"the stage {idle[0]} would change nothing; at least 1 is needed")
    absence = "; clients that hold them are absent" if absent else ""
    reason = f"no client has data for it{absence}, or the method is a control"
    named = request.target_name(request.targets[0], names)
    raise BadInput(request.option, named, f"the stage {idle[0]} changes nothing: {reason}")
