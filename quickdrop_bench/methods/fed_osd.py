"""FedOSD: unlearning steps orthogonal to what the others learn (Pan et al., AAAI 2025, arXiv 2412.20200)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Clock, Cost, Storage
from quickdrop_bench.federation.faults import Fate
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery, Relearning

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context

log = logging.getLogger(__name__)

LEAST_SHARE = 1e-3
"""Unlearning ends where less of its gradient than this share is orthogonal to the others': the rest is noise."""


@METHODS.register("fedosd")
@dataclass(frozen=True)
class FedOsd(Recovery, Relearning):
    """Server steps θ ← θ − ηd on UCE = −ln(1 − p_y/2) of D_f, with d orthogonal to every other client's gradient.

    In a round clients send the gradient g_u of UCE on their forget data and g_r of the cross-entropy on what they
    retain, over the whole set at θ. d = g_u − Aᵀ(AAᵀ)⁺A·g_u, with the mean g_u and the g_r as rows of A, at the length
    of g_u. In recovery each update loses its part along θ − θ_request, the way back, and keeps its length.
    The paper forgets clients; samples and classes have the same formulas, and clients that hold both kinds send both.
    Its clients send sums over an epoch's steps, here means over the set, so its rates are not ours. The released code
    leaves singular values below an absolute 1e-6 as they are; here they count as zero below a relative one.

    Attributes:
        unlearn_rounds: most server steps (paper: 100); they end early where nothing orthogonal is left.
        unlearn_lr: learning rate η of a server step.
    """

    title: ClassVar[str] = "FedOSD"
    color: ClassVar[str] = "#117733"
    order: ClassVar[int] = 850
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "unlearning steps orthogonal to the others' gradients"
    search: ClassVar[Search] = {
        "unlearning": {"unlearn_rounds": (2, 5, 10, 20), "unlearn_lr": (0.03, 0.1, 0.3, 1.0)},
        "recovery": RECOVERY_SEARCH,
    }

    unlearn_rounds: int = 20
    unlearn_lr: float = 0.1

    def unlearn(self, context: Context) -> StageResult:
        """Steps of steepest descent of UCE that leave, to first order, every retained loss as it is."""
        sets = [{i: z for i, z in s.items() if len(z)} for s in (context.forget_data(), context.retain_data())]
        rounds = self.unlearn_rounds if sets[0] else 0
        images = sum(len(z) for s in sets for z in s.values()) if rounds else 0
        result, goes_on = StageResult(context.state, Cost(data_size=images)), True
        for k in range(rounds):
            if goes_on:
                result, goes_on = self._round(context, result, sets, k)
        return result

    def _round(
        self, context: Context, before: StageResult, sets: Sequence[Mapping[int, LabelledSet]], k: int
    ) -> tuple[StageResult, bool]:
        """One step on the clients' forget and retain sets, and whether another is to follow."""
        from torch.nn.functional import cross_entropy

        from quickdrop_bench.federation.passes import full_gradients
        from quickdrop_bench.functional.aggregation import is_finite, moved

        fates = context.federation.faults.fates(context.seed, "unlearning", k, sorted({*sets[0], *sets[1]}), [*sets[0]])
        computing = [{i: z for i, z in s.items() if fates[i] is not Fate.DROPPED} for s in sets]
        away, spent = full_gradients(context.federation, before.state, computing[0], unlearning_loss)
        kept, more = full_gradients(context.federation, before.state, computing[1], cross_entropy)
        g_u, g_r = ([g for i, g in found.items() if fates[i] is Fate.RETURNS] for found in (away, kept))
        sent = sum(fates[i] is not Fate.LATE for found in (away, kept) for i in found)
        counts = {fate: sum(its is fate for its in fates.values()) for fate in Fate}
        cost = (
            spent
            + more
            + Cost(
                rounds=1,
                upload_bytes=4 * sent * len(next(iter(away.values()))),
                dropouts=counts[Fate.DROPPED],
                stragglers=counts[Fate.LATE],
                rejected_updates=counts[Fate.CORRUPT],
            )
        )
        clock = Clock(context.federation.fabric.device)
        with clock.running():
            direction = orthogonal_step(g_u, g_r)
            state = before.state if direction is None else moved(before.state, direction, -self.unlearn_lr)
        if direction is None:
            log.info("round %d: next to nothing of the unlearning gradient is orthogonal to the others'", k + 1)
        cost += before.cost + clock.cost
        if not is_finite(state):
            return StageResult(before.state, cost, diverged=True), False
        return StageResult(state, cost), direction is not None

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on D without everything forgotten; no update leads back to the model before the request."""
        from quickdrop_bench.functional.aggregation import flat, moved
        from quickdrop_bench.functional.projection import without_span

        def without_way_back(k: int, client: int, before: State, after: State) -> State:
            start, end, origin = (flat(s, before) for s in (before, after, context.state))
            update = end - start
            turned = without_span(update, (start - origin)[None])
            length = float(turned.norm())
            return moved(before, turned, float(update.norm()) / length if length else 0.0)

        phase = self.recovery(context.training)
        return context.run(state, context.retain_data(), phase, transform=without_way_back)

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()


def unlearning_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """UCE = −ln(1 − p_y/2), in [0, ln 2]: mean over (B, C) logits with (B,) labels; least at p_y = 0."""
    p = logits.softmax(1).gather(1, labels[:, None])
    return -(-p / 2).log1p().mean()


def orthogonal_step(g_u: Sequence[Tensor], g_r: Sequence[Tensor]) -> Tensor | None:
    """The (P,) float64 direction d from the holders' and the others' gradients; None where nothing is left of it."""
    import torch

    from quickdrop_bench.functional.projection import without_span

    mean = torch.stack([g.cpu().double() for g in g_u]).mean(0)
    d = without_span(mean, torch.stack(list(g_r)) if g_r else mean.new_zeros(0, len(mean)))
    length, left = float(mean.norm()), float(d.norm())
    return d * (length / left) if left > LEAST_SHARE * length else None
