"""From a command line to experiments: an exhibit's variants × data sets × protocols × swept values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from jsonargparse import Namespace

from quickdrop_bench.cli.lists import classes_of, numbers, numbers_of, samples_of, split
from quickdrop_bench.cli.output import counted
from quickdrop_bench.cli.parser import AXES, spelled
from quickdrop_bench.cli.resolve import CommandLine, arithmetic, federation_spec, methods_of, seeds_of
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import class_names
from quickdrop_bench.data.requests import OPTIONS, Samples, UnlearningRequest
from quickdrop_bench.harness.exhibits import Exhibit, Variant, exhibit
from quickdrop_bench.harness.experiment import ORIGINAL, Experiment
from quickdrop_bench.harness.run_spec import Rules
from quickdrop_bench.methods import METHODS
from quickdrop_bench.methods.registry import SMALL_SETS, check_support

DEFAULT = " (the default)"

MOST_CELLS = 10_000
"""Federations of a command; planning takes some milliseconds each."""


def cells(name: str, line: CommandLine) -> Iterator[tuple[Experiment, list[str]]]:
    """What an exhibit, e.g. ``table4``, measures, each with the methods to run.

    Methods that keep no small sets are measured at one scale and without fine-tuning.

    Raises:
        BadInput: an option has no usable value, a method cannot serve what is asked, or that is too much.
    """
    own, args = exhibit(name), line.options(name)
    _check(own, args)
    plans = [_Plan(own, variant, line) for variant in own.variants]
    points = sum(map(len, plans))
    if points * len(seeds_of(args)) > MOST_CELLS:
        asked = f"{points * len(seeds_of(args))} federations, {points} of them on each seed"
        raise BadInput("command line", f"asks for {asked}", f"at most {MOST_CELLS} are planned; give fewer values")
    seen: set[tuple[Any, ...]] = set()
    for experiment, wanted in counted((cell for plan in plans for cell in plan.cells()), "points laid out", points):
        runs = _runs(experiment)
        if {*runs.values()} - seen:  # --iid makes a variant equal to another
            here = [method for method in wanted if runs[method] not in seen]
            seen |= {*runs.values()}
            experiment.check(here)
            yield experiment, here


def _runs(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """What tells the runs of each method, and of the original model, from those of other cells."""
    identity = {**experiment.identity(), **{option: getattr(experiment.federation, option) for option in AXES}}
    identity.pop("alpha")  # in the distribution, unless that is IID
    place = tuple(identity.items())
    return {m: (*place, m, *experiment.method_setting(m).values()) for m in (ORIGINAL, *experiment.methods)}


def _check(own: Exhibit, args: Namespace) -> None:
    for option in ("dataset", "datasets", "models", "protocol"):
        if args.get(option) is not None and not split(f"--{option}", args[option]):
            raise BadInput(f"--{option}", args[option], "at least one is needed")
    asked = split("--methods", args.methods)
    if args.methods and not asked:
        raise BadInput("--methods", args.methods, "at least one is needed")
    if own.trains_only and asked:
        raise BadInput("--methods", args.methods, f"{own.name} measures training and runs no method")
    if own.trains_only and not args.distill:
        raise BadInput("--distill", "false", f"{own.name} is about distillation")
    levels = {exhibit(variant.shape).level for variant in own.variants}
    for method in asked:
        if not METHODS[method].levels & levels:
            check_support(method, UnlearningRequest(min(levels), (0,)), METHODS[method].needs)


@dataclass(frozen=True)
class _Plan:
    """What a variant of an exhibit measures.

    It names the section of the preset that holds its settings, the exhibit whose methods, level and stages it takes,
    and further options.
    """

    own: Exhibit
    variant: Variant
    line: CommandLine

    @cached_property
    def _args(self) -> Namespace:
        return self._options({})

    @cached_property
    def _kinds(self) -> tuple[list[str], ...]:
        protocols = split("--protocol", self._args.protocol)
        return _listed(self._args, "dataset"), _listed(self._args, "model"), protocols

    @cached_property
    def _axes(self) -> dict[str, list[float]]:
        return {
            option: numbers(spelled(plural), self._args[plural], whole=option in ("clients", "fine_tune"))
            for option, plural in AXES.items()
            if self._args.get(plural) is not None
        }

    def __len__(self) -> int:
        lists: list[Sequence[Any]] = [*self._kinds, *self._axes.values()]
        return prod(map(len, lists))

    def cells(self) -> Iterator[tuple[Experiment, list[str]]]:
        """Experiments with the methods to run; of the others, rows of earlier commands are shown."""
        args, axes, shape = self._args, self._axes, exhibit(self.variant.shape)
        asked = split("--methods", args.methods)
        able = [m for m in METHODS if shape.level in METHODS[m].levels]
        shown = [] if self.own.trains_only else [m for m in shape.methods if m in able]
        wanted = [m for m in asked if m in able] if asked else shown
        methods = list(dict.fromkeys((*shown, *wanted)))
        for dataset, model, protocol in product(*self._kinds):
            kind = {"dataset": dataset, "protocol": protocol}
            usual = self._experiment(self._options(kind, own=False), methods, ())
            kind["model"] = model
            for point in product(*axes.values()):
                place = dict(zip(axes, point, strict=True))
                here = [m for m in wanted if METHODS[m].needs & SMALL_SETS or _is_reference(axes, place, args)]
                if here or not wanted:
                    one = self._options({**kind, **place})
                    experiment = self._experiment(one, methods, self._requests(one, shape.level))
                    yield replace(experiment, usual=usual, swept=frozenset(axes)), here

    def _requests(self, args: Namespace, level: str) -> tuple[UnlearningRequest | Samples, ...]:
        """What is to be forgotten, one after the other; a class that does not exist may be the default."""
        if level == "sample" and (samples := samples_of(args.forget_samples)):
            return tuple(samples)
        if level == "class":
            text, note = args.forget_class, "" if "forget_class" in self.line.said else DEFAULT
            targets = classes_of(text, class_names(args.dataset, args.data_dir), note)
        elif level == "client":
            text, targets = args.forget_client, numbers_of("--client", args.forget_client)
        else:
            text, targets = args.forget_samples, ()
        if not targets:
            raise BadInput(OPTIONS[level], text, "one, or several as 9,3, is needed")
        return tuple(UnlearningRequest(level, (target,)) for target in targets)

    def _options(self, place: Mapping[str, Any], *, own: bool = True) -> Namespace:
        """The options; without the user's ``own`` the preset's, from which a variant's methods may differ."""
        options = {key: value for key, value in self.variant.options.items() if own or "." not in key}
        return self.line.options(self.variant.section, {**options, **place}, own=own)

    def _experiment(
        self, args: Namespace, methods: Sequence[str], requests: tuple[UnlearningRequest | Samples, ...]
    ) -> Experiment:
        configured, shape = methods_of(args), exhibit(self.variant.shape)
        return Experiment(
            artefact=self.own.name,
            preset=args.preset,
            federation=federation_spec(args),
            requests=requests,
            methods={method: configured[method] for method in methods},
            seeds=seeds_of(args),
            data_dir=args.data_dir,
            precision=arithmetic(args),
            rules=Rules(args.protocol, args.patience, shape.relearn, self.own.each_round),
        )


def _listed(args: Namespace, option: str) -> list[str]:
    """Names from an option or from its plural, which stands above it."""
    several = args.get(f"{option}s")
    return split(f"--{option}s", several) if several else split(f"--{option}", args[option])


def _is_reference(axes: Mapping[str, list[float]], place: Mapping[str, Any], args: Namespace) -> bool:
    """Whether methods without small sets are measured here.

    That is at the preset's own scale if it is among those swept, else at the first; likewise without fine-tuning.
    """
    for option in {"scale", "fine_tune"} & axes.keys():
        values, own = axes[option], args[option]
        if place[option] != (own if own in values else values[0]):
            return False
    return True
