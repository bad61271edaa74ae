"""Options that a user typed and that the command would not use: refused, never ignored.

What presets and ``--config`` files set is not typed: both may serve several commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import Namespace

from quickdrop_bench.cli.lists import split
from quickdrop_bench.cli.options import AXES
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import DATASETS
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.harness.spec import MODEL_OPTIONS, FederationSpec
from quickdrop_bench.methods import METHODS, Method
from quickdrop_bench.models import MODELS

__all__ = ["check_data", "check_experiments", "check_partition", "check_request", "check_training", "typed_options"]

Typed = Mapping[str, str]
"""Options on a command line, each with its last value; flags have ``true``."""

PARTITION = ("--dataset", "--image-size", "--clients", "--alpha", "--iid", "--min-client-size")
"""Options of a federation that decide who holds what."""

DISTILLATION = ("--image-steps", "--image-lr", "--image-momentum", "--synthetic-batch-size")
FINE_TUNING = ("--fine-tune-steps", "--fine-tune-epochs", "--fine-tune-batch-size", "--fine-tune-lr")
REQUESTS = ("--class", "--client")


def typed_options(argv: Sequence[str]) -> dict[str, str]:
    """What stands on a command line.

    Raises:
        BadInput: a request is given twice; the second one would take the first one's place.
    """
    typed: dict[str, str] = {}
    for part, following in zip(argv, [*argv[1:], "--"], strict=True):
        if not part.startswith("--"):
            continue
        option, given, value = part.partition("=")
        if option in REQUESTS and option in typed:
            raise BadInput(option, "is given twice", "several are written as 9,3")
        typed[option] = value if given else "true" if following.startswith("--") else following
    return typed


def _refuse(typed: Typed, options: Iterable[str], reason: str) -> None:
    """Raise :class:`BadInput` if one of the options was typed."""
    for option in options:
        if option in typed:
            raise BadInput(option, typed[option], reason)


def check_partition(args: Namespace, typed: Typed) -> None:
    """For a command that draws a partition and trains nothing."""
    of_training = [_option(f.name) for f in fields(FederationSpec)]
    _refuse(typed, set(of_training) - set(PARTITION), "this command trains nothing and has no use for it")
    check_data(typed, [args.dataset])
    _check_alpha(args, typed)


def check_training(args: Namespace, typed: Typed) -> None:
    """For a command that trains federations."""
    check_data(typed, [args.dataset])
    _check_federation(args, typed)


def check_experiments(name: str, args: Namespace, typed: Typed, experiments: Sequence[Experiment]) -> None:
    """For a command that measures an artefact.

    Args:
        name: of the artefact, e.g. ``table4``.
        args: the command's options.
        typed: from :func:`typed_options`.
        experiments: all that it measures.
    """
    check_data(typed, {e.federation.dataset for e in experiments})
    _check_federation(args, typed)
    _check_axes(args, typed)
    methods = {m: settings for e in experiments for m, settings in e.methods.items()}
    if not methods:
        _refuse(typed, [*REQUESTS, "--protocol", "--patience"], f"{name} measures training and serves no request")
    levels = {request.level for e in experiments for request in e.requests}
    for level in {"class", "client"} - levels:
        _refuse(typed, [f"--{level}"], f"{name} serves {' and '.join(levels)} requests, see --{min(levels)}")
    if not args.distill and not any("real-subset" in METHODS[m].needs for m in methods):
        _refuse(typed, ["--scale"], "nothing is distilled, and no method here keeps a subset of the images")
    _check_methods(typed, methods, f"{name} neither runs nor shows it")
    if not any(e.rules.relearn for e in experiments):
        _refuse_fields(typed, methods, ("relearn_",), f"{name} learns nothing again")
    if all(e.rules.protocol == "tuned" for e in experiments):
        for method in methods:
            searched = [name for found in METHODS[method].search.values() for name in found]
            _refuse(typed, [_option(f, method) for f in searched], "the protocol tuned searches for it")


def check_request(action: str, args: Namespace, typed: Typed, methods: Iterable[Method], dataset: str) -> None:
    """For ``unlearn`` and ``relearn``.

    Args:
        action: which.
        args: the command's options.
        typed: from :func:`typed_options`.
        methods: the method, with its settings for each level of requests.
        dataset: of the federation.
    """
    check_data(typed, [dataset])
    for settings in methods:
        _check_methods(typed, {args.method: settings}, f"--method is {args.method}")
        idle = ("relearn_",) if action == "unlearn" else ("unlearn_", "recover_")
        _refuse_fields(typed, [args.method], idle, f"{action} does not use it")


def _option(field: str, method: str = "") -> str:
    return f"--{f'{method}.' if method else ''}{field.replace('_', '-')}"


def check_data(typed: Typed, datasets: Iterable[str]) -> None:
    """For a command that reads these data sets."""
    names = list(datasets)
    if all(name in DATASETS and not DATASETS[name].from_folder for name in names):
        _refuse(
            typed, ["--data-dir"], f"{' and '.join(names)} is read from no folder; --dataset names another data set"
        )


def _check_alpha(args: Namespace, typed: Typed) -> None:
    if args.iid:
        _refuse(typed, ["--alpha", "--alphas"], "IID parts have no α; leave out one of it and --iid")


def _check_federation(args: Namespace, typed: Typed) -> None:
    _check_alpha(args, typed)
    has = {f.name for f in fields(MODELS[args.model])}  # type: ignore[arg-type]
    idle = [_option(name) for name in MODEL_OPTIONS if name not in has]
    _refuse(typed, idle, f"--model {args.model} has no such option")
    if not args.distill:
        _refuse(typed, DISTILLATION, "nothing is distilled, as --distill is false")
    if not args.fine_tune and args.get("fine_tunes") in (None, "0"):
        _refuse(typed, FINE_TUNING, "nothing is fine-tuned; --fine-tune says on how many initialisations")
    if args.wandb == "disabled":
        mirrored = ("--wandb-project", "--wandb-entity", "--wandb-images")
        _refuse(typed, mirrored, "--wandb is disabled, and nothing goes to W&B")


def _check_axes(args: Namespace, typed: Typed) -> None:
    """An option whose values are swept is used only to say at which of them the other methods are measured."""
    if args.get("datasets"):
        _refuse(typed, ["--dataset"], f"--datasets {args.datasets} is swept")
    for axis, plural in AXES.items():
        swept = args.get(plural) if plural != axis else None
        if swept is None:
            continue
        known = map(float, split(_option(plural), swept))
        if axis == "alpha" or float(args[axis]) not in known:
            _refuse(typed, [_option(axis)], f"{_option(plural)} {swept} is swept")


def _check_methods(typed: Typed, methods: Mapping[str, Method], reason: str) -> None:
    """Settings of other methods, and steps in whose place passes are made."""
    for option in typed:
        method, _, field = option.removeprefix("--").partition(".")
        if field and method in METHODS and method not in methods:
            _refuse(typed, [option], reason)
    for method, settings in methods.items():
        for stage in ("unlearn", "recover", "relearn"):
            passes = getattr(settings, f"{stage}_local_epochs", None)
            if passes is not None:
                instead = f"{_option(f'{stage}_local_epochs', method)} {passes} takes its place"
                _refuse(typed, [_option(f"{stage}_local_steps", method)], instead)


def _refuse_fields(typed: Typed, methods: Iterable[str], beginnings: tuple[str, ...], reason: str) -> None:
    for method in methods:
        names: list[Any] = [f.name for f in fields(METHODS[method]) if f.name.startswith(beginnings)]  # type: ignore[arg-type]
        _refuse(typed, [_option(name, method) for name in names], reason)
