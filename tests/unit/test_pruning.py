"""TF-IDF over channels, against cases computed by hand and properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from quickdrop_bench.functional.pruning import (
    channel_activity,
    choose_channels,
    class_sums,
    inverse_document_frequency,
    least_kept,
    pooled_means,
    prunable_layers,
    prune_count,
    term_frequency,
    tf_idf,
)
from quickdrop_bench.models import Model
from quickdrop_bench.models.resnet18 import ResNet18
from tests.small_models import EACH


def random_means(classes: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(classes, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing_pruned(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bool)


def test_activity_is_the_mean_of_what_is_positive() -> None:
    """One channel, pixels −4, 1, 2, 5: (0 + 1 + 2 + 5) / 4 = 2; the ReLU comes before the mean (else 1)."""
    output = torch.tensor([-4.0, 1.0, 2.0, 5.0]).reshape(1, 1, 2, 2)
    assert channel_activity(output).tolist() == [[2.0]]
    assert channel_activity(output.bfloat16()).dtype == torch.float32


def test_a_silent_layer_has_no_term_frequency() -> None:
    """0/0 counts as 0, and says nothing about the layers beside it."""
    assert term_frequency(torch.tensor([0.0, 0.0, 1.0, 3.0]), (2, 2)).tolist() == [0, 0, 0.25, 0.75]


def test_scores_by_hand() -> None:
    """Three classes, layers of two and one channels, class 0 is scored.

    TF: 6/(6+2), 2/(6+2), 5/5. Means over classes: 2, 2, 4. Reached by {0}, all, {0, 2}: q = 1, 3, 2.
    IDF = ln(4/2), ln(4/4), ln(4/3).
    """
    means = torch.tensor([[6.0, 2.0, 5.0], [0.0, 2.0, 3.0], [0.0, 2.0, 4.0]])
    torch.testing.assert_close(inverse_document_frequency(means), torch.tensor([math.log(2), 0.0, math.log(4 / 3)]))
    expected = torch.tensor([0.75 * math.log(2), 0.0, math.log(4 / 3)])
    torch.testing.assert_close(tf_idf(means, 0, (2, 1)), expected)


@pytest.mark.parametrize("classes", [1, 2, 3, 6, 7, 10, 49])
def test_a_uniform_channel_tells_nothing_whatever_the_rounding(classes: int) -> None:
    values = torch.cat([random_means(1, 500)[0], torch.tensor([0.0, 0.1, 1 / 3, 1e-30])])
    for dtype in (torch.float32, torch.float64):
        assert not inverse_document_frequency(values.to(dtype).expand(classes, -1)).any()


def test_pooled_means_are_those_of_the_union() -> None:
    """Three clients of 5, 1 and 12 samples; the second lacks two of the three classes."""
    stream = torch.Generator().manual_seed(3)
    classes = torch.arange(3)
    activity = [torch.rand(n, 4, generator=stream) for n in (5, 1, 12)]
    labels = [torch.tensor([0, 1, 1, 2, 0]), torch.tensor([2]), torch.arange(12) % 3]
    means, counts = [], []
    for a, y in zip(activity, labels, strict=True):
        total, count = class_sums(a, y, classes)
        means.append(total / count.clamp(min=1)[:, None])
        counts.append(count)
    together, y = torch.cat(activity), torch.cat(labels)
    union = torch.stack([together[y == c].double().mean(0) for c in range(3)])
    torch.testing.assert_close(pooled_means(means, counts), union)
    torch.testing.assert_close(pooled_means(means[::-1], counts[::-1]), union)
    assert not torch.allclose(torch.stack(means).mean(0), union)  # the plain mean over clients differs


def test_a_class_without_samples_is_silent() -> None:
    pooled = pooled_means([torch.zeros(2, 1), torch.ones(2, 1)], [torch.tensor([0, 0]), torch.tensor([0, 4])])
    assert pooled.tolist() == [[0.0], [1.0]]


def test_counts_of_the_ratio_as_written() -> None:
    """⌊R·n⌋ by exact fractions of the decimal; 0.29·100 is 28.999… in floating point."""
    for hundredths in range(1, 100):
        for channels in (1, 8, 96, 100, 384):
            assert prune_count(hundredths / 100, channels) == hundredths * channels // 100


def test_ties_go_to_the_first_channels() -> None:
    assert choose_channels(torch.ones(40), (20, 20), 15, nothing_pruned(40)).nonzero().flatten().tolist() == list(
        range(15)
    )
    scores = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])
    assert choose_channels(scores, (5,), 3, nothing_pruned(5)).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("widths", [(128, 128, 128), (4, 4), (1, 30), (11, 5, 2)])
def test_every_layer_keeps_a_tenth(widths: tuple[int, ...]) -> None:
    """R = 0.95 asks for more than there is: each layer ends at its ⌈w/10⌉. Scores favour emptying the first layer."""
    scores = torch.arange(sum(widths), 0, -1).double()
    chosen = choose_channels(scores, widths, prune_count(0.95, sum(widths)), nothing_pruned(sum(widths)))
    assert [int((~c).sum()) for c in chosen.split(widths)] == [math.ceil(w / 10) for w in widths]
    assert [least_kept(w) for w in widths] == [max(1, math.ceil(w / 10)) for w in widths]


@pytest.mark.parametrize(("gone", "count", "expected"), [([], 4, [0, 1, 2, 5]), ([0, 3], 2, [1, 5])])
def test_a_full_layer_passes_its_turn_to_the_next_best(gone: list[int], count: int, expected: list[int]) -> None:
    """Four channels of the first layer lead, but only three can go, those pruned before among them."""
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 3.0, 2.0, 0.0])
    pruned = torch.isin(torch.arange(8), torch.tensor(gone, dtype=torch.int64))
    assert choose_channels(scores, (4, 4), count, pruned).nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("model", EACH, ids=str)
def test_prunable_layers_are_all_convolutions_with_their_normalisation(model: Model) -> None:
    """Those of ResNet-18: 1 + 8·2 + 3, each with a normalisation that counts the same channels."""
    network = model.build(1, 8, 3)
    layers = prunable_layers(network)
    convs = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert [conv for conv, _ in layers] == convs
    assert len(convs) == (20 if isinstance(model, ResNet18) else 2)
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)]
    assert [norm for _, norm in layers if norm] == norms
    assert len(norms) in (0, len(convs))
    for conv, norm in layers:
        if norm:
            assert network.get_parameter(f"{norm}.weight").shape == network.get_parameter(f"{conv}.weight").shape[:1]
