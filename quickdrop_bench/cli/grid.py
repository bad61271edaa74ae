"""From a command line to experiments: an exhibit's variants × data sets × protocols × swept values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from jsonargparse import Namespace

from quickdrop_bench.cli.lists import classes_of, numbers, numbers_of, split
from quickdrop_bench.cli.options import AXES, spelled
from quickdrop_bench.cli.resolve import CommandLine, arithmetic, federation_spec, methods_of, seeds_of
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import class_names
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.harness.exhibits import Exhibit, Variant, exhibit
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.harness.spec import Rules
from quickdrop_bench.methods import METHODS
from quickdrop_bench.methods.base import SMALL_SETS, check_support

__all__ = ["cells"]

DEFAULT = " (the default)"


def cells(name: str, line: CommandLine) -> Iterator[tuple[Experiment, list[str]]]:
    """What an exhibit, e.g. ``table4``, measures, each with the methods to run.

    Methods that keep no small sets are measured at one scale and without fine-tuning.

    Raises:
        BadInput: an option has no usable value, or a method cannot serve what is asked.
    """
    own, args = exhibit(name), line.options(name)
    _check(own, args)
    seen: list[dict[str, Any]] = []
    for variant in own.variants:
        for experiment, here in _Plan(own, variant, line).cells():
            identity = {**experiment.identity(), **{option: getattr(experiment.federation, option) for option in AXES}}
            identity.pop("alpha")  # in the distribution, unless that is IID
            if identity not in seen:  # --iid makes a variant equal to another
                seen.append(identity)
                experiment.check(here)
                yield experiment, here


def _check(own: Exhibit, args: Namespace) -> None:
    for option in ("dataset", "datasets", "models", "protocol"):
        if args.get(option) is not None and not split(f"--{option}", args[option]):
            raise BadInput(f"--{option}", args[option], "at least one is needed")
    asked = split("--methods", args.methods)
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

    def cells(self) -> Iterator[tuple[Experiment, list[str]]]:
        """Experiments with the methods to run; of the others, rows of earlier commands are shown."""
        args, shape = self._options({}), exhibit(self.variant.shape)
        axes, asked = _axes(args), split("--methods", args.methods)
        able = [m for m in METHODS if shape.level in METHODS[m].levels]
        shown = [] if self.own.trains_only else [m for m in shape.methods if m in able]
        wanted = [m for m in asked if m in able] if asked else shown
        methods = list(dict.fromkeys((*shown, *wanted)))
        kinds = _listed(args, "dataset"), _listed(args, "model"), split("--protocol", args.protocol)
        for dataset, model, protocol in product(*kinds):
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

    def _requests(self, args: Namespace, level: str) -> tuple[UnlearningRequest, ...]:
        """What is to be forgotten, one after the other; a class that does not exist may be the default."""
        if level == "class":
            text, note = args.forget_class, "" if "forget_class" in {**self.line.typed, **self.line.files} else DEFAULT
            targets = classes_of(text, class_names(args.dataset, args.data_dir), note)
        else:
            text, targets = args.forget_client, numbers_of("--client", args.forget_client)
        if not targets:
            raise BadInput(f"--{level}", text, "one, or several as 9,3, is needed")
        return tuple(UnlearningRequest(level, (target,)) for target in targets)

    def _options(self, place: Mapping[str, Any], *, own: bool = True) -> Namespace:
        return self.line.options(self.variant.section, {**self.variant.options, **place}, own=own)

    def _experiment(
        self, args: Namespace, methods: Sequence[str], requests: tuple[UnlearningRequest, ...]
    ) -> Experiment:
        """What the options describe."""
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


def _axes(args: Namespace) -> dict[str, list[float]]:
    """Values by option of what is swept."""
    return {
        option: numbers(spelled(plural), args[plural], whole=option in ("clients", "fine_tune"))
        for option, plural in AXES.items()
        if args.get(plural) is not None
    }


def _is_reference(axes: Mapping[str, list[float]], place: Mapping[str, Any], args: Namespace) -> bool:
    """Whether methods without small sets are measured here.

    That is at the preset's own scale if it is among those swept, else at the first; likewise without fine-tuning.
    """
    for option in {"scale", "fine_tune"} & axes.keys():
        values, own = axes[option], args[option]
        if place[option] != (own if own in values else values[0]):
            return False
    return True
