"""Options that a user typed and that the command would not use: refused, never ignored.

What presets and ``--config`` files set is not typed: both may serve several commands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from quickdrop_bench.cli.lists import numbers, split
from quickdrop_bench.cli.parser import AXES, declared, spelled
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import DATASETS
from quickdrop_bench.data.requests import OPTIONS
from quickdrop_bench.harness.federation_spec import MODEL_OPTIONS, FederationSpec
from quickdrop_bench.methods import METHODS, Method
from quickdrop_bench.models import MODELS

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from quickdrop_bench.cli.resolve import CommandLine
    from quickdrop_bench.harness.experiment import Experiment

FORGOTTEN = {"class": "forget_class", "client": "forget_client", "sample": "forget_samples"}
"""The key of the option that says what requests of a level forget."""


def _refuse(line: CommandLine, keys: Iterable[str], reason: str) -> None:
    """Raise :class:`BadInput` if one of the options was typed."""
    for key in keys:
        if key in line.typed:
            value = line.typed[key]
            text = f"{value:g}" if isinstance(value, float) else "true" if value is True else value
            raise BadInput(spelled(key), text, reason)


def _fields(*kinds: str) -> list[str]:
    """The fields of a federation that belong to this."""
    return [f.name for f in fields(FederationSpec) if f.metadata["of"] in kinds]


def check_data(line: CommandLine, datasets: Iterable[str]) -> None:
    """For a command that reads these data sets."""
    names = list(datasets)
    if all(name in DATASETS and not DATASETS[name].from_folder for name in names):
        reason = f"{' and '.join(names)} is read from no folder"
        if "dataset" in declared(line.command):
            reason += "; --dataset names another data set"
        _refuse(line, ["data_dir"], reason)


def check_partition(line: CommandLine, args: Namespace, datasets: Iterable[str]) -> None:
    """For a command that draws a partition of these data sets."""
    check_data(line, datasets)
    if line.command == "distribution":
        of_training = _fields("training", "distillation", "fine-tuning")
        _refuse(line, of_training, "this command trains nothing and has no use for it")
    if args.iid:
        _refuse(line, ["alpha", "alphas"], "IID parts have no α; leave out one of it and --iid")


def check_federation(line: CommandLine, args: Namespace, datasets: Iterable[str]) -> None:
    """For a command that trains federations on these data sets."""
    check_partition(line, args, datasets)
    models = split("--models", args.get("models") or args.model)
    has = {f.name for model in models for f in fields(MODELS[model])}  # type: ignore[arg-type]
    idle = [name for name in MODEL_OPTIONS if name not in has]
    _refuse(line, idle, f"--model {' and '.join(models)} has no such option")
    if not args.distill:
        _refuse(line, _fields("distillation"), "nothing is distilled, as --distill is false")
    if not args.fine_tune and args.get("fine_tunes") in (None, "0"):
        reason = "nothing is fine-tuned; --fine-tune says on how many initialisations"
        _refuse(line, _fields("fine-tuning"), reason)
    _check_mirror(line, args)


def check_experiments(name: str, line: CommandLine, args: Namespace, experiments: Collection[Experiment]) -> None:
    """For a command that measures these experiments of a table, a figure or a sweep, e.g. ``table4``."""
    check_federation(line, args, {e.federation.dataset for e in experiments})
    _check_axes(line, args)
    methods = {m: settings for e in experiments for m, settings in e.methods.items()}
    if not methods:
        own = (*FORGOTTEN.values(), "protocol", "patience")
        _refuse(line, own, f"{name} measures training and serves no request")
    levels = {request.level for e in experiments for request in e.requests}
    for level in FORGOTTEN.keys() - levels:
        reason = f"{name} serves {' and '.join(levels)} requests, see {OPTIONS[min(levels)]}"
        _refuse(line, [FORGOTTEN[level]], reason)
    if not args.distill and not any("real-subset" in METHODS[m].needs for m in methods):
        _refuse(line, ["scale"], "nothing is distilled, and no method here keeps a subset of the images")
    asked = split("--methods", args.methods)
    run = {m: settings for m, settings in methods.items() if not asked or m in asked}
    _check_methods(line, run, "--methods does not name it" if asked else f"{name} neither runs nor shows it")
    if not any(e.rules.relearn for e in experiments):
        _refuse(line, _settings(methods, "relearn_"), f"{name} learns nothing again")
    if all(e.rules.protocol == "tuned" for e in experiments):
        searched = [_key(m, field) for m in methods for found in METHODS[m].search.values() for field in found]
        _refuse(line, searched, "the protocol tuned searches for it")


def check_request(action: str, line: CommandLine, args: Namespace, settings: Iterable[Method], dataset: str) -> None:
    """For ``unlearn`` and ``relearn`` with a method, whose settings are given for each level of requests."""
    check_data(line, [dataset])
    _check_mirror(line, args)
    idle = ("relearn_",) if action == "unlearn" else ("unlearn_", "recover_")
    for own in settings:
        _check_methods(line, {args.method: own}, f"--method is {args.method}")
        _refuse(line, _settings([args.method], *idle), f"{action} does not use it")


def _check_mirror(line: CommandLine, args: Namespace) -> None:
    """What says where runs go in W&B."""
    if args.wandb == "disabled":
        mirrored = ("wandb_project", "wandb_entity", "wandb_images")
        _refuse(line, mirrored, "--wandb is disabled, and nothing goes to W&B")


def _key(method: str, field: str) -> str:
    return f"{method}.{field}".replace("-", "_")


def _settings(methods: Iterable[str], *beginnings: str) -> list[str]:
    """The settings of methods whose names begin like this."""
    return [_key(m, f.name) for m in methods for f in fields(METHODS[m]) if f.name.startswith(beginnings)]  # type: ignore[arg-type]


def _check_axes(line: CommandLine, args: Namespace) -> None:
    """An option whose values are swept is used only to say at which of them the other methods are measured."""
    for option in ("dataset", "model"):
        if several := args.get(f"{option}s"):
            _refuse(line, [option], f"--{option}s {several} is swept")
    for axis, plural in AXES.items():
        swept = args.get(plural) if plural != axis else None
        if swept is not None and (axis == "alpha" or args[axis] not in numbers(spelled(plural), swept)):
            _refuse(line, [axis], f"{spelled(plural)} {swept} is swept")


def _check_methods(line: CommandLine, methods: Mapping[str, Any], reason: str) -> None:
    """Settings of other methods, and steps in whose place passes are made."""
    others = [name for name in METHODS if name not in methods]
    _refuse(line, _settings(others, ""), reason)
    for method, settings in methods.items():
        for stage in ("unlearn", "recover", "relearn"):
            passes = getattr(settings, f"{stage}_local_epochs", None)
            if passes is not None:
                instead = spelled(f"{method}.{stage}_local_epochs")
                _refuse(line, [_key(method, f"{stage}_local_steps")], f"{instead} {passes} takes its place")
