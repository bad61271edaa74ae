"""How far a model's weights are from the retrained model's.

A diagnostic only: permuted channels and, under group normalisation, rescaled filters leave a network as it is, and are
far away here. Two retrainings of different seeds are nearly as far from each other as either is from the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quickdrop_bench.evaluation.metric import METRICS, Evaluated, Number, metric

if TYPE_CHECKING:
    from torch import Tensor


def layer_distances(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    """‖u_w − r_w‖ of every parameter by name, ≥ 0, in float64."""
    return {name: float((own[name].double() - value.double()).norm()) for name, value in other.items()}


def total_distance(distances: Mapping[str, float]) -> float:
    """That of all parameters together: the root of the sum of squares."""
    return math.hypot(*distances.values())


def cosine(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Cosine of the angle between all parameters of two models, in [−1, 1]; NaN if one is all zeros."""
    product = sum(float((own[name].double() * value.double()).sum()) for name, value in other.items())
    norms = math.hypot(*_norms(own).values()) * math.hypot(*_norms(other).values())
    return product / norms if norms else math.nan


def _norms(state: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.double().norm()) for name, value in state.items()}


@METRICS.register("layer-distance")
@metric(
    {
        "layer_distance": Number("relative", better="lower", floor=True),
        "layer_distance_mean": Number("relative", better="lower", floor=True),
        "weight_cosine": Number("cosine", better="higher", floor=True),
    },
    {"total"},
    needs_oracle=True,
)
def layer_distance(model: Evaluated, stage: str) -> dict[str, float]:
    """Distance of the weights to the retrained model's, as a share of their norm: of all, and the mean over layers."""
    if model.oracle is None:
        return {}
    found, norms = layer_distances(model.state, model.oracle), _norms(model.oracle)
    shares = [found[name] / norm for name, norm in norms.items() if norm]
    return {
        "layer_distance": total_distance(found) / total_distance(norms) if shares else math.nan,
        "layer_distance_mean": sum(shares) / len(shares) if shares else math.nan,
        "weight_cosine": cosine(model.state, model.oracle),
    }
