"""What a client's local steps use, drawn on the host before the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quickdrop_bench.distillation.in_situ import Distillation, positions_by_class


@dataclass(frozen=True)
class Plan:
    """T steps of one client; row t belongs to step t. All tensors lie on the CPU.

    Attributes:
        rows: (T, B) int64, positions in the client's data; rows beyond a short batch are padding.
        labels: (T, B) int64.
        weights: (T, B) float32, 1/(batch size); zero for padding.
        means: (T, C) float32, batch size / samples of the class in the batch, which makes a class's part of the
            gradient its mean; zero for classes that the batch lacks.
        picks: (T, M) int64, positions in the synthetic set; beyond the step's images padding.
        pick_labels: (T, M) int64.
        shares: (T, M) float32, 1/(images of the class in the step); zero for padding.
        matched: (T, C) float32, 1 for classes that the step matches, else 0.
    """

    rows: Tensor
    labels: Tensor
    weights: Tensor
    means: Tensor
    picks: Tensor
    pick_labels: Tensor
    shares: Tensor
    matched: Tensor

    def packed(self) -> tuple[Tensor, Tensor]:
        """All integers and all other numbers of each step, side by side: two copies take them to a device."""
        whole = torch.cat([self.rows, self.labels, self.picks, self.pick_labels], 1)
        return whole, torch.cat([self.weights, self.means, self.shares, self.matched], 1)


def batches(size: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Walk through shuffled positions without replacement, reshuffle at the end, for ``steps`` batches.

    The last batch of a walk may be short; a set smaller than the batch gives full-batch steps.

    Example:
        >>> [len(b) for b in batches(5, 2, 4, torch.Generator())]
        [2, 2, 1, 2]
    """
    done = 0
    while done < steps:
        for batch in torch.randperm(size, generator=generator).split(batch_size):
            yield batch
            done += 1
            if done == steps:
                return


def plan_steps(drawn: list[Tensor], labels: Tensor, width: int, classes: int) -> Plan:
    """The plan of steps without distillation.

    Args:
        drawn: positions of each step's batch.
        labels: (n,) int64, of the client's data, on the CPU.
        width: B, to which batches are padded.
        classes: C.
    """
    sizes = torch.tensor([len(batch) for batch in drawn])
    rows = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True)
    rows = torch.nn.functional.pad(rows, (0, width - rows.shape[1]))
    real = torch.arange(width) < sizes[:, None]
    own = labels[rows]
    order = own.masked_fill(~real, classes).argsort(dim=1, stable=True)  # padding comes last and stays there
    rows, own = rows.gather(1, order), own.gather(1, order)
    counts = torch.zeros(len(drawn), classes).scatter_add_(1, own, real.float())
    means = torch.where(counts > 0, sizes[:, None] / counts, 0)
    none, nothing = torch.empty(len(drawn), 0, dtype=torch.int64), torch.empty(len(drawn), 0)
    return Plan(rows, own, real / sizes[:, None], means, none, none, nothing, torch.zeros_like(means))


def synthetic_images(labels: Tensor, fixed: frozenset[int], settings: Distillation) -> int:
    """Most images of a synthetic set with these labels, on the CPU, that a local step can match."""
    counts = torch.bincount(labels).tolist()
    return sum(min(count, settings.batch_size) for c, count in enumerate(counts) if c not in fixed)


def with_matching(
    plan: Plan, labels: Tensor, fixed: frozenset[int], settings: Distillation, generator: torch.Generator, width: int
) -> Plan:
    """The plan with the synthetic images that each step matches, drawn as Algorithm 2 does step by step.

    Args:
        plan: of the local steps.
        labels: (m,) int64, of the client's synthetic set, on the CPU.
        fixed: classes that are not distilled.
        settings: |B_S|.
        generator: draws B_S where a class has more images than fit.
        width: M, at least :func:`synthetic_images`.
    """
    steps, classes = plan.means.shape
    open_classes = {c: own for c, own in positions_by_class(labels).items() if c not in fixed}
    picks, shares = torch.zeros(steps, width, dtype=torch.int64), torch.zeros(steps, width)
    matched = torch.zeros(steps, classes)
    for t, present in enumerate((plan.means > 0).tolist()):
        chosen = {c: own for c, own in open_classes.items() if present[c]}
        for c, own in chosen.items():
            if len(own) > settings.batch_size:
                chosen[c] = own[torch.randperm(len(own), generator=generator)[: settings.batch_size]]
        if chosen:
            together = torch.cat(list(chosen.values()))
            picks[t, : len(together)] = together
            matched[t, list(chosen)] = 1
            counts = torch.tensor([len(own) for own in chosen.values()])
            shares[t, : len(together)] = (1 / counts).repeat_interleave(counts)
    pick_labels = labels[picks] if len(labels) else picks
    return replace(plan, picks=picks, pick_labels=pick_labels, shares=shares, matched=matched)
