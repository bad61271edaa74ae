"""Class-discriminative channel pruning: TF-IDF over channels (Wang et al., WWW 2022, §4).

A channel is to a class what a word is to a document. Channels of all convolutions lie side by side in one
dimension of n entries, layer after layer; ``widths`` says how many belong to each layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def prunable_layers(model: nn.Module) -> list[tuple[str, str | None]]:
    """The convolutions, whose channels can be pruned, and the normalisation right behind each.

    A channel is zero behind its layer if its parameters of both modules are. In a residual network that is what the
    block, or its shortcut, adds to the channel: what earlier blocks put there passes by.

    Args:
        model: lists its modules in the order in which they run.

    Returns:
        Module names, in order: of the convolution, and of the normalisation or None.

    Example:
        >>> prunable_layers(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3)))
        [('0', '1'), ('3', None)]
    """
    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    behind = [(name if isinstance(module, nn.GroupNorm) else None) for name, module in leaves[1:]] + [None]
    return [(name, norm) for (name, module), norm in zip(leaves, behind, strict=True) if isinstance(module, nn.Conv2d)]


def channel_activity(output: Tensor) -> Tensor:
    """How strongly each channel of a convolution fires: the mean of its ReLU over the picture.

    Args:
        output: (B, C, H, W), what the convolution gives before normalisation.

    Returns:
        (B, C) float32, ≥ 0.
    """
    return output.float().relu().mean((2, 3))


def class_sums(activity: Tensor, labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Sum samples class by class.

    Args:
        activity: (B, n) floating.
        labels: (B,) int64.
        classes: (U,) int64, distinct; samples of other classes are left out.

    Returns:
        (U, n) float64 sums and (U,) int64 counts.
    """
    members = classes[:, None] == labels
    return members.double() @ activity.double(), members.sum(1)


def pooled_means(means: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """A^{u,j} = Σ_i n_i^u·A_i^{u,j} / Σ_i n_i^u: what the union of the clients' samples would give.

    The plain mean over clients (§4.1) takes a class that a client lacks for one that leaves its channels silent.

    Args:
        means: one (U, n) per client, of at least one; rows of classes that a client lacks do not matter if finite.
        counts: one (U,) per client, integers ≥ 0.

    Returns:
        (U, n) float64; zero for a class without samples.
    """
    weights = torch.stack(list(counts)).double()
    totals = weights.sum(0).clamp(min=1)
    return (torch.stack(list(means)).double() * weights[:, :, None]).sum(0) / totals[:, None]


def term_frequency(activity: Tensor, widths: Sequence[int]) -> Tensor:
    """A channel's share of its layer's activity (n,), for one class (§4.2).

    Each layer sums to 1, or to 0 if all of it is silent.
    """
    shares = []
    for layer in activity.split(list(widths)):
        total = layer.sum()
        shares.append(torch.where(total > 0, layer / total, 0))
    return torch.cat(shares)


def inverse_document_frequency(means: Tensor) -> Tensor:
    """ln[(1 + U) / (1 + q_j)], where q_j classes reach channel j's mean over the classes (§4.2).

    The paper's logarithm, so that no value is negative, with the threshold of the authors' code.

    Args:
        means: (U, n), ≥ 0; a row per class.

    Returns:
        (n,) in [0, ln((1 + U)/2)]; 0 for a channel to which all classes are equal.
    """
    # A rounded mean can exceed the equal values it was taken of.
    threshold = means.mean(0).minimum(means.amax(0))
    reached = (means >= threshold).sum(0)
    return torch.log((1 + len(means)) / (1 + reached).to(means.dtype))


def tf_idf(means: Tensor, target: int, widths: Sequence[int]) -> Tensor:
    """How much each channel speaks for the class in row ``target`` rather than for the others: (n,), ≥ 0 (§4.2)."""
    return term_frequency(means[target], widths) * inverse_document_frequency(means)


def prune_count(ratio: float, channels: int) -> int:
    """⌊R·n⌋ for R as it is written: 0.29 of 100 is 29, although the product in floating point is below.

    Example:
        >>> prune_count(0.29, 100), prune_count(0.2, 384)
        (29, 76)
    """
    return math.floor(ratio * channels + 1e-9)


def least_kept(width: int) -> int:
    """Channels that a layer keeps in any case: a tenth, rounded up.

    Example:
        >>> [least_kept(width) for width in (1, 10, 11, 128)]
        [1, 1, 2, 13]
    """
    return -(-width // 10)


def choose_channels(scores: Tensor, widths: Sequence[int], count: int, pruned: Tensor) -> Tensor:
    """The channels to prune next: those with the highest scores over all layers (§4.3).

    Ties go to the channel that comes first. A layer that is down to :func:`least_kept` is passed over, so fewer
    than ``count`` are chosen only if every layer is.

    Args:
        scores: (n,) floating.
        widths: channels of each layer; they sum to n.
        count: how many to choose.
        pruned: (n,) bool, those that are pruned already; they are not chosen again.

    Returns:
        (n,) bool on the device of ``scores``.
    """
    layers = [layer for layer, width in enumerate(widths) for _ in range(width)]
    gone = pruned.tolist()
    left = [int((~old).sum()) for old in pruned.split(list(widths))]
    spare = [kept - least_kept(width) for kept, width in zip(left, widths, strict=True)]
    chosen: list[int] = []
    for channel in torch.sort(scores, descending=True, stable=True).indices.tolist():
        if len(chosen) >= count:
            break
        if not gone[channel] and spare[layers[channel]] > 0:
            spare[layers[channel]] -= 1
            chosen.append(channel)
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    mask[chosen] = True
    return mask


def zero_filters(weight: Tensor) -> Tensor:
    """(C,) bool: which filters of a (C, …) weight are zero throughout, which is how pruned ones are known."""
    return ~weight.flatten(1).any(1)


def channel_masks(
    layers: Sequence[tuple[str, str | None]], alive: Sequence[Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks for every parameter that gives a convolution's channel a value.

    The normalisation belongs to it: over one channel it turns a silent channel into its constant bias.

    Args:
        layers: names of each convolution and of the normalisation behind it.
        alive: one (C,) bool per layer, False for pruned channels.
        state: parameters by name.

    Returns:
        Bool tensors that broadcast to the parameters of their name.
    """
    masks = {}
    for names, mask in zip(layers, alive, strict=True):
        for name in (f"{module}.{kind}" for module in names if module for kind in ("weight", "bias")):
            if name in state:
                masks[name] = mask.reshape(-1, *[1] * (state[name].ndim - 1))
    return masks
