"""What a method may make of a model: looked at after each stage, as methods may come from other packages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.functional.aggregation import State, is_finite
from quickdrop_bench.harness.request import stages
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.registry import StageResult


def checked_stages(action: str, context: Context, method: Method, **options: Any) -> Iterator[tuple[str, StageResult]]:
    """The :func:`~quickdrop_bench.harness.request.stages` of a method on a copy of the model, which others need too.

    A stage that gives weights which are not finite has diverged, whether or not the method says so; the model stays as
    it was before.

    Raises:
        BadInput: a stage gives something else than a model of the same layout and its cost.
    """
    own = replace(context, state={name: value.clone() for name, value in context.state.items()})
    last = context.state
    for stage, result in stages(action, own, method, **options):
        if wrong := _wrong(result, context.state):
            raise BadInput("--method", type(method).__name__, f"its {stage} gave {wrong}")
        if not is_finite(result.state):
            yield stage, replace(result, state=last, diverged=True)
            return
        last = result.state
        yield stage, result


def _wrong(result: StageResult, before: State) -> str:
    """What is wrong with a stage's result; nothing if it can be used."""
    if not (isinstance(result, StageResult) and isinstance(result.cost, Cost)):
        return "no StageResult with a Cost"
    if _layout(result.state) != _layout(before):
        return "weights of other names, shapes or types than the model's"
    for field in fields(result.cost):
        value = getattr(result.cost, field.name)
        if field.compare and not (isinstance(value, int | float) and 0 <= value < math.inf):
            return f"a cost with {field.name} {value!r}, and a plain number of at least 0 is needed"
    return ""


def _layout(state: State) -> dict[str, object]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}
