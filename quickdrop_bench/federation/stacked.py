"""Local steps of several clients as one, for small steps on a CPU, which are mostly the fixed cost of their kernels.

The reference is :class:`~quickdrop_bench.federation.local.LoopEngine`. The clients' images lie side by side along the
channels, and so do their weights: a convolution has a group for each of the n clients. Image b of client i is number
b·n + i of whatever has a row or a column per image, class c of client i number c·n + i. What a step uses is planned
beforehand; batches that are short are padded with weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.distillation.in_situ import Distillation, SyntheticSet
from quickdrop_bench.federation.local import LocalResult, LocalWork
from quickdrop_bench.federation.plan import Plan, plan_steps, synthetic_images, with_matching
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.layers import sequence_of
from quickdrop_bench.functional.second_order import class_gradients, distance_and_image_gradient
from quickdrop_bench.functional.side_by_side import classes_of, side_by_side

AT_ONCE = 5
"""Clients of a stack, on average at most: what each of two processes has of ten."""

MATCHING = 2
"""Passes over a batch's image that those over a matched synthetic image take as long as."""

SMALL = 2048
"""Most images × pixels of a client's step that is stacked: 32 images of 8×8.

On one thread five clients took 1/2.7 of their time one by one with 4 such images, 1/1.7 with 32, with distillation or
without, and hardly less with 64 (section (g) of ``results/speed/speed-avx512.md``)."""


class StackedEngine:
    """Trains clients in stacks, on copies of a model of which ``layers.is_listed`` is true, on a CPU."""

    def __init__(self, model: nn.Module, settings: Distillation | None) -> None:
        self._shapes = {name: p.shape for name, p in model.named_parameters()}  # in the order of the layers
        self._layers, self._settings = sequence_of(model), settings
        self._classes = classes_of(self._layers)
        self._models: dict[int, nn.Sequential] = {}
        self._warm: set[tuple[int, int]] = set()

    def stacks(self, works: Mapping[int, LocalWork]) -> list[list[int]]:
        """Who is trained with whom, by client; one whose steps are not small is alone.

        The clients of a stack make equally many steps and have sets of like sizes, so that little is padded; the stacks
        take about as long. Who they are does not depend on how many processes there are.
        """
        alike: dict[int, list[int]] = {}
        for client in sorted(works, key=lambda client: (len(works[client].data), client)):
            steps = works[client].phase.steps(len(works[client].data)) if self._is_small(works[client]) else -client
            alike.setdefault(steps, []).append(client)
        costs = {client: _batch(work) + MATCHING * self._matched_images(work) for client, work in works.items()}
        return [stack for clients in alike.values() for stack in _parts({client: costs[client] for client in clients})]

    def _is_small(self, work: LocalWork) -> bool:
        images = max(_batch(work), self._matched_images(work))
        return not work.plain and images * work.data.images[0, 0].numel() <= SMALL

    def _matched_images(self, work: LocalWork) -> int:
        """Most synthetic images of a step."""
        own, settings = work.synthetic, self._settings
        if own is None or settings is None or not settings.image_steps:
            return 0
        return synthetic_images(own.labels, own.fixed_classes, settings)

    def train(
        self, works: Sequence[LocalWork], before: State, clock: Clock, distillation_clock: Clock
    ) -> list[tuple[LocalResult, State]]:
        """The local steps of a stack from θ_{k,0}: what each client did, and its θ_{k,T}, which the next call changes.

        The clocks run as the reference's, for all clients together.
        """
        n, phase = len(works), works[0].phase
        losses, made, going = [], [], torch.ones(n, dtype=torch.bool)
        model = self._model(n, before)
        self._warm_up(model, works)
        with clock.running():
            plans = self._plans(works)
            plan = _together(plans)
            matching = None
            if self._settings is not None and plan.picks.shape[1]:
                matching = _Matching([w.synthetic for w in works if w.synthetic is not None], plan, self._settings)
            taken = [work.data.take(own.rows)[0] for work, own in zip(works, plans, strict=True)]
            images = torch.stack(taken, 2).flatten(2, 3)
            for t in range(len(images)):
                if matching is None:
                    loss, gradients = _gradients(model, images[t], plan.labels[t], plan.weights[t], n)
                else:
                    loss, gradients = matching.step(model, images[t], t, distillation_clock)
                losses.append(loss)
                made.append(going)
                if phase.stop_loss is not None and matching is None:
                    going = going & ~(loss > phase.stop_loss)
                    if not going.any():
                        break
                self._change(model, gradients, going, works[0])
        results = _results(plan, torch.stack(losses), torch.stack(made), matching)
        parameters = self._by_client(n, model.parameters())
        return [(result, {name: p[i] for name, p in parameters.items()}) for i, result in enumerate(results)]

    def _model(self, n: int, state: State) -> nn.Sequential:
        """A model of n clients that all have these parameters."""
        if n not in self._models:
            self._models[n] = side_by_side(self._layers, n)
        for name, p in self._by_client(n, self._models[n].parameters()).items():
            p.copy_(state[name])
        return self._models[n]

    def _warm_up(self, model: nn.Sequential, works: Sequence[LocalWork]) -> None:
        """One uncounted pass for each shape of a batch, so that kernels are chosen outside the clock."""
        n, width = len(works), max(map(_batch, works))
        if (n, width) not in self._warm:
            self._warm.add((n, width))
            images = torch.cat([work.data.images[:1] for work in works], 1).expand(width, -1, -1, -1)
            labels = torch.zeros(width * n, dtype=torch.int64)
            _gradients(model, images, labels, torch.zeros(width * n), n)

    def _by_client(self, n: int, tensors: Iterable[Tensor]) -> State:
        """Views of (n, ...), by name, from parameters of a stack or their gradients."""
        return {
            name: v.detach().view(n, *shape) for (name, shape), v in zip(self._shapes.items(), tensors, strict=True)
        }

    def _plans(self, works: Sequence[LocalWork]) -> list[Plan]:
        """Each client's, with as many columns for all."""
        width, images = max(map(_batch, works)), max(map(self._matched_images, works))
        plans = [plan_steps(list(w.drawn()), w.data.own_labels(), width, self._classes) for w in works]
        if not images or self._settings is None:
            return plans
        sets = [(work.synthetic, work.matching) for work in works if work.synthetic is not None]
        return [
            with_matching(plan, own.labels, own.fixed_classes, self._settings, generator, images)
            for plan, (own, generator) in zip(plans, sets, strict=True)
        ]

    @torch.no_grad()
    def _change(self, model: nn.Sequential, gradients: Sequence[Tensor], going: Tensor, work: LocalWork) -> None:
        """θ_{k,t+1} of the clients that go on."""
        if work.masks or not going.all():
            by_client = self._by_client(len(going), gradients)
            for name, mask in work.masks.items():
                by_client[name].mul_(mask)
            for gradient in by_client.values():
                gradient[~going] = 0
        lr = work.phase.lr if work.phase.ascend else -work.phase.lr
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.add_(gradient.view_as(parameter), alpha=lr)


class _Matching:
    """Algorithm 2, lines 12 to 15, with the synthetic sets of all clients one behind the other."""

    def __init__(self, sets: Sequence[SyntheticSet], plan: Plan, settings: Distillation) -> None:
        self._sets, self._plan, self.settings, n = sets, plan, settings, len(sets)
        self._images, self._velocity = (torch.cat([getattr(s, name) for s in sets]) for name in ("images", "velocity"))
        sizes = torch.tensor([len(s) for s in sets])
        self._owners = torch.arange(n).repeat_interleave(sizes)
        self._picks = plan.picks + (sizes.cumsum(0) - sizes).repeat(plan.picks.shape[1] // n)
        self.distances = torch.zeros(n)

    def step(self, model: nn.Sequential, images: Tensor, t: int, clock: Clock) -> tuple[Tensor, list[Tensor]]:
        """The loss and the gradients of a batch, and synthetic images moved towards the latter."""
        plan, n = self._plan, len(self._sets)
        labels, weights, pairs = plan.labels[t], plan.weights[t], plan.means[t].nonzero().flatten()
        classes = Classes.stacked(labels, weights, pairs, n)
        loss, gradients, parts = class_gradients(list(model), images, labels, weights, classes)
        with clock.running():
            of_matched = plan.matched[t][pairs].nonzero().flatten()
            if len(of_matched):
                pairs = pairs[of_matched]
                targets = [p[of_matched] * plan.means[t][pairs].view(-1, *[1] * (p.dim() - 1)) for p in parts]
                self._move(model, targets, pairs, t)
        return loss, gradients

    def _move(self, model: nn.Sequential, targets: list[Tensor], pairs: Tensor, t: int) -> None:
        n, picks, labels, shares = len(self._sets), self._picks[t], self._plan.pick_labels[t], self._plan.shares[t]
        classes = Classes.stacked(labels, shares, pairs, n)
        # A client that matches nothing in this step leaves its images and their momentum alone.
        moved = self._plan.matched[t].view(-1, n).amax(0)[self._owners].view(-1, 1, 1, 1)
        momentum = torch.where(moved > 0, self.settings.image_momentum, 1.0)
        for step in range(self.settings.image_steps):
            chosen = self._images[picks]
            side_by_side = chosen.view(-1, n * chosen.shape[1], *chosen.shape[2:])
            distance, gradient = distance_and_image_gradient(list(model), side_by_side, labels, classes, targets)
            if not step:
                self.distances += distance
            gradient = gradient.view_as(chosen).masked_fill(shares.view(-1, 1, 1, 1) == 0, 0)
            self._velocity.mul_(momentum).index_add_(0, picks, gradient)
            self._images.addcmul_(self._velocity, moved, value=-self.settings.image_lr)

    def finish(self) -> None:
        """Give the clients their images and velocities back."""
        sizes = [len(own) for own in self._sets]
        parts = zip(self._sets, self._images.split(sizes), self._velocity.split(sizes), strict=True)
        for own, images, velocity in parts:
            own.images.copy_(images)
            own.velocity.copy_(velocity)


def _gradients(
    model: nn.Sequential, images: Tensor, labels: Tensor, weights: Tensor, n: int
) -> tuple[Tensor, Sequence[Tensor]]:
    """(n,) losses of the clients' batches, and the gradients of their sum, each client's by its own parameters."""
    losses = F.cross_entropy(model(images), labels, reduction="none") * weights
    return losses.detach().view(-1, n).sum(0), torch.autograd.grad(losses.sum(), list(model.parameters()))


def _batch(work: LocalWork) -> int:
    return min(len(work.data), work.phase.batch_size)


def _parts(costs: Mapping[int, int]) -> list[list[int]]:
    """Stacks that cost nearly the same, from clients in order.

    Example:
        >>> _parts({3: 1, 1: 1, 4: 1, 5: 1, 9: 2, 2: 2})
        [[1, 3, 4, 5], [2, 9]]
    """
    count = math.ceil(len(costs) / AT_ONCE)
    parts: list[list[int]] = [[] for _ in range(count)]
    before, total = 0, sum(costs.values())
    for client, cost in costs.items():
        parts[(2 * before + cost) * count // (2 * total)].append(client)  # where its middle lies
        before += cost
    return [sorted(part) for part in parts if part]


def _together(plans: Sequence[Plan]) -> Plan:
    """One plan, in whose rows the clients take turns."""
    columns = (torch.stack([getattr(plan, f.name) for plan in plans], 2).flatten(1) for f in fields(Plan))
    return Plan(*columns)


def _results(plan: Plan, losses: Tensor, made: Tensor, matching: _Matching | None) -> list[LocalResult]:
    """What each client did, from (T, n) losses and whether it made the step."""
    steps, n = losses.shape
    used = (_counted(plan.weights[:steps], n) * made).sum(0).tolist()
    means = (torch.where(made, losses, 0).double().sum(0) / made.sum(0)).tolist()
    second, distances = [0] * n, [0.0] * n
    if matching is not None:
        matching.finish()
        second = (_counted(plan.shares, n).sum(0) * matching.settings.image_steps).tolist()
        distances = (matching.distances / (_counted(plan.matched, n) > 0).sum(0).clamp(min=1)).tolist()
    costs = [Cost(sample_gradients=a, second_order_sample_gradients=b) for a, b in zip(used, second, strict=True)]
    return [LocalResult(*result) for result in zip(costs, means, distances, strict=True)]


def _counted(columns: Tensor, n: int) -> Tensor:
    """(T, n) how many of each client's columns are not zero in a step."""
    return columns.gt(0).view(len(columns), columns.shape[1] // n, n).sum(1)
