"""From a command line to experiments: an artefact's variants × data sets × swept values × protocols."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from jsonargparse import Namespace

from quickdrop_bench.cli.lists import check_once, requests_of, split
from quickdrop_bench.cli.options import AXES, arithmetic, federation_spec, methods_of, rules_of, seeds_of
from quickdrop_bench.cli.unused import typed_options
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import class_names
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.harness.exhibits import Exhibit, Variant, exhibit
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.methods import METHODS
from quickdrop_bench.methods.base import SMALL_SETS, check_support

__all__ = ["Parse", "cells"]

Parse = Callable[[Sequence[str], str], Namespace]
"""From a command line and the preset's section that counts to the command's options."""


def cells(name: str, args: Namespace, argv: Sequence[str], parse: Parse) -> Iterator[tuple[Experiment, list[str]]]:
    """What an artefact measures, each with the methods to run.

    A variant names the section of the preset that holds its settings, the artefact whose methods, level and stages
    it takes, and further options. Methods that keep no small sets are measured at one scale and without fine-tuning.

    Args:
        name: of the artefact, e.g. ``table4``.
        args: the command's options, with the preset's section of that artefact.
        argv: the command line that they come from.
        parse: parses it again, with other values and another section.

    Raises:
        BadInput: an option has no usable value, or a method cannot serve what is asked.
    """
    typed = typed_options(argv)
    own = exhibit(name)
    levels: set[str] = {exhibit(variant.shape).level for variant in own.variants}
    asked = split("--methods", args.methods)
    _check(name, args, asked, levels, trains_only=own.trains_only)
    seen: list[dict[str, Any]] = []
    for variant in own.variants:
        section, options, layout = variant.section, _typed(variant), exhibit(variant.shape)
        base = [*argv, *options, "--preset", args.preset]
        of_section = args if (section, options) == (name, ()) else parse(base, section)
        axes = _axes(of_section)
        several = of_section.get("datasets")
        datasets = split("--datasets", several) if several else split("--dataset", of_section.dataset)
        protocols = split("--protocol", args.protocol)
        shown = [m for m in (() if own.trains_only else layout.methods) if layout.level in METHODS[m].levels]
        wanted = [m for m in asked if layout.level in METHODS[m].levels] if asked else shown
        run = list(dict.fromkeys((*shown, *wanted)))
        described = partial(_experiment, own, layout, run)
        number = [str(args.number)] if "number" in args else []
        preset = [argv[0], *number, *options, "--preset", args.preset]
        usual = {
            (dataset, protocol): described((), parse([*preset, "--dataset", dataset, "--protocol", protocol], section))
            for dataset, protocol in product(datasets, protocols)
        }
        for dataset, protocol, *point in product(datasets, protocols, *axes.values()):
            place = dict(zip(axes, point, strict=True))
            swept = [part for option, value in place.items() for part in (f"--{option.replace('_', '-')}", value)]
            one = parse([*base, "--dataset", dataset, "--protocol", protocol, *swept], section)
            here = [m for m in wanted if METHODS[m].needs & SMALL_SETS or _is_reference(axes, place, of_section)]
            if wanted and not here:
                continue
            requests = requests_of(one, layout.level, class_names(one.dataset, one.data_dir), typed)
            experiment = replace(described(requests, one), usual=usual[dataset, protocol], swept=frozenset(axes))
            identity = {**experiment.identity(), **{option: getattr(experiment.federation, option) for option in AXES}}
            identity.pop("alpha")  # in the distribution, unless that is IID
            if identity not in seen:  # --iid makes a variant equal to another
                seen.append(identity)
                experiment.check(here)
                yield experiment, here


def _typed(variant: Variant) -> tuple[str, ...]:
    """A variant's options as on a command line."""
    return tuple(f"--{name}" if value is True else f"--{name}={value}" for name, value in variant.options.items())


def _experiment(
    own: Exhibit,
    layout: Exhibit,
    methods: Sequence[str],
    requests: tuple[UnlearningRequest, ...],
    args: Namespace,
) -> Experiment:
    """What the options describe."""
    configured = methods_of(args)
    return Experiment(
        artefact=own.name,
        preset=args.preset,
        federation=federation_spec(args),
        requests=requests,
        methods={method: configured[method] for method in methods},
        seeds=seeds_of(args),
        data_dir=args.data_dir,
        precision=arithmetic(args),
        rules=rules_of(args, relearn=layout.relearn, each_round=own.each_round),
    )


def _check(name: str, args: Namespace, asked: Sequence[str], levels: set[str], *, trains_only: bool) -> None:
    for option in ("dataset", "datasets", "protocol"):
        if args.get(option) is not None and not split(f"--{option}", args[option]):
            raise BadInput(f"--{option}", args[option], "at least one is needed")
    if trains_only:
        if asked:
            raise BadInput("--methods", args.methods, f"{name} measures training and runs no method")
        if not args.distill:
            raise BadInput("--distill", "false", f"{name} is about distillation")
    for method in asked:
        if not METHODS[method].levels & levels:
            check_support(method, UnlearningRequest(min(levels), (0,)), METHODS[method].needs)


def _axes(args: Namespace) -> dict[str, list[str]]:
    """Values by option of what is swept; nothing for commands that sweep nothing."""
    axes = {}
    for option, plural in AXES.items():
        text = args.get(plural)
        if text is None:
            continue
        axes[option] = split(f"--{plural.replace('_', '-')}", text)
        whole = option in ("clients", "fine_tune")
        for value in axes[option] or [""]:
            if not re.fullmatch(r"\d{1,9}" if whole else r"\d+(\.\d+)?(e-?\d+)?", value):
                kind = "whole numbers" if whole else "numbers"
                raise BadInput(f"--{plural.replace('_', '-')}", text, f"{kind} are needed, as 1,10,100")
        check_once(f"--{plural.replace('_', '-')}", text, [float(value) for value in axes[option]])
    return axes


def _is_reference(axes: Mapping[str, list[str]], place: Mapping[str, str], args: Namespace) -> bool:
    """Whether methods without small sets are measured here.

    That is at the preset's own scale if it is among those swept, else at the first; likewise without fine-tuning.
    """
    for option in {"scale", "fine_tune"} & axes.keys():
        values = [float(value) for value in axes[option]]
        own = float(args[option])
        if float(place[option]) != (own if own in values else values[0]):
            return False
    return True
