"""The round loop: Algorithm 1's FedAvg(Z, θ, phase) over simulated clients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.core.seeding import derive_seed, generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation, SyntheticSet
from quickdrop_bench.federation.faults import Fate, Faults, corrupted
from quickdrop_bench.federation.local import LocalResult, LocalWork, LoopEngine, Stepper
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.federation.ranks import add_up, hand_round, spread
from quickdrop_bench.federation.stacked import StackedEngine
from quickdrop_bench.federation.static import PRECISIONS, StaticEngine
from quickdrop_bench.functional.aggregation import RunningMean, State, is_finite
from quickdrop_bench.functional.initial import draw_parameters
from quickdrop_bench.functional.layers import is_listed

MIN_IMPROVEMENT = 0.01
"""Fall of the clients' mean training loss (nats) that counts as progress, see ``Phase.patience``."""

Choose = Callable[[int, list[int]], list[int]]
"""From a round's index and the sorted clients with data to those that take part; nobody skips the round."""

Transform = Callable[[int, int, State, State], State]
"""From a round's index, a client, the state it started from and its trained state to what is averaged for it."""

Record = Callable[[int, int, int, State, State], object]
"""Told a round's index, a client, its number of samples, the state it started from and its trained state.

Where updates may be corrupt, it is told only of those that arrive finite."""


@dataclass(frozen=True)
class RoundInfo:
    """What Fabric callbacks get at ``on_round_end``.

    Attributes:
        phase: the running phase.
        round: 0-based index of the round that ended.
        participants: the clients whose updates were averaged.
        loss: sample-weighted mean of their training losses.
        matching_distance: mean over them of the distance per matched step; 0 without distillation.
        state: the global model after the round; not to be changed.
        cost: of the phase so far.
        dropped, late, rejected: chosen clients that did not take part, computed too slowly, sent values not finite.
    """

    phase: Phase
    round: int
    participants: tuple[int, ...]
    loss: float
    matching_distance: float
    state: State = field(repr=False)
    cost: Cost
    dropped: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()


def sample_clients(eligible: list[int], participation: float, generator: torch.Generator) -> list[int]:
    """The clients of one round: a random share in (0, 1] of those that have data, at least one, sorted."""
    if participation >= 1:
        return eligible
    count = max(1, math.floor(participation * len(eligible) + 0.5))
    chosen = torch.randperm(len(eligible), generator=generator)[:count]
    return sorted(eligible[i] for i in chosen.tolist())


@dataclass(frozen=True)
class _Job:
    """What all rounds of a phase have in common."""

    data: Mapping[int, LabelledSet]
    phase: Phase
    seed: int
    synthetic: Mapping[int, SyntheticSet]
    transform: Transform | None
    record: Record | None
    stepper: Stepper | None

    def work(self, clients: Iterable[int]) -> dict[int, int]:
        """Sample-gradients of each client's local steps in a round."""
        sizes = {client: len(self.data[client]) for client in clients}
        return {i: self.phase.steps(size) * min(size, self.phase.batch_size) for i, size in sizes.items()}

    def synthetic_tensors(self, client: int) -> list[Tensor]:
        """What distillation changes of a client; nothing for one without a synthetic set."""
        own = self.synthetic.get(client)
        return [] if own is None else [own.images, own.velocity]


@dataclass(frozen=True)
class _Report:
    """What a client computed in a round, and whether its update was finite; None if none arrived."""

    cost: Cost
    loss: float
    matching_distance: float
    accepted: bool | None


class Federation:
    """A server and its simulated clients on one Fabric.

    One working model visits the clients in turn, or where that is faster one of several clients visits these at once
    (:mod:`~quickdrop_bench.federation.stacked`). On a Fabric of several processes, each has its share of the clients
    (:mod:`~quickdrop_bench.federation.ranks`), and all end with the same results. Every random stream is derived from
    (seed, phase, round, client), so neither the order of the clients nor where they run changes a result.

    Args:
        fabric: launched; decides device and precision, and calls the callbacks' ``on_round_end``.
        model: the architecture; its current parameters do not matter.
        distillation: the constants of Algorithm 2, for phases that get synthetic sets.
        faults: how often clients fail, in every phase; None for never.
        static: whether :class:`~quickdrop_bench.federation.static.StaticEngine` makes the local steps, in one of its
            precisions; False leaves all to the reference; None chooses by the device.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        distillation: Distillation | None = None,
        faults: Faults | None = None,
        *,
        static: bool | None = None,
    ) -> None:
        self.fabric = fabric
        self._inner = model
        # SGD without momentum or weight decay, as in Algorithm 1: one stateless optimizer serves all clients.
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        self.model, self._optimizer = fabric.setup(model, optimizer)
        self.distillation = distillation
        self.faults = faults or Faults()
        self._masks: Mapping[str, Tensor] = {}
        self._loop = LoopEngine(fabric, self.model, self._optimizer, distillation)
        self._engine: LoopEngine | StaticEngine = self._loop
        self._stacked: StackedEngine | None = None
        precision = fabric.strategy.precision
        if static or (static is None and fabric.device.type == "cuda"):
            if precision.precision in PRECISIONS:
                self._engine = StaticEngine(model, distillation, precision)
        elif static is None and fabric.device.type == "cpu" and precision.precision == "32-true" and is_listed(model):
            self._stacked = StackedEngine(model, distillation)
        self._bytes = sum(p.numel() * 4 for p in model.parameters())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a state into the working model, e.g. to evaluate it."""
        with torch.no_grad():
            for name, parameter in self._inner.named_parameters():
                parameter.copy_(state[name])

    def read(self) -> State:
        """A copy of the working model's parameters."""
        return {name: p.detach().clone() for name, p in self._inner.named_parameters()}

    def fresh_state(self, seed: int, *purpose: object) -> State:
        """Newly drawn initial parameters θ_0; the working model holds them afterwards."""
        draw_parameters(self._inner, derive_seed(seed, *purpose))
        return self.read()

    def scratch_model(self) -> nn.Module:
        """A copy of the model in float32 that phases never touch, e.g. for fine-tuning."""
        return copy.deepcopy(self._inner)

    def run(
        self,
        state: State,
        data: Mapping[int, LabelledSet],
        phase: Phase,
        seed: int,
        *,
        synthetic: Mapping[int, SyntheticSet] | None = None,
        start: PhaseResult | None = None,
        on_round: Callable[[RoundInfo], object] | None = None,
        choose: Choose | None = None,
        transform: Transform | None = None,
        record: Record | None = None,
        stepper: Stepper | None = None,
    ) -> PhaseResult:
        """FedAvg(Z, θ, phase): average the clients' local training, weighted by |Z_i|, round by round.

        Clients with an empty Z_i do not take part. If nobody has data, the state comes back unchanged. Where clients
        may fail, each round averages those that returned, at least one.

        Args:
            state: θ_{0,0}; not changed.
            data: Z_i by client id.
            phase: rounds, local steps, batch size, learning rate, direction, participation.
            seed: the run's seed.
            synthetic: S_i by client id, distilled in place (Algorithm 2); only clients that compute change.
            start: continue this phase after ``start.cost.rounds`` rounds, none of them skipped.
            on_round: called after every round, before the Fabric callbacks.
            choose: picks the clients of a round, in place of ``phase.participation``.
            transform: changes what is averaged for a client, in the process that simulates it, inside the time.
            record: sees every update that arrives, in the same process, outside the time.
            stepper: takes the place of SGD in the clients' local steps.
        """
        eligible = sorted(client for client, z in data.items() if len(z))
        result = start or PhaseResult(state, Cost(data_size=sum(len(data[client]) for client in eligible)))
        if not eligible:
            return result
        job = _Job(data, phase, seed, synthetic or {}, transform, record, stepper)
        if isinstance(self._engine, StaticEngine):
            self._engine.begin(job.synthetic)
        warm, best, waited = False, math.inf, 0
        for k in range(start.cost.rounds if start else 0, phase.rounds):
            if choose is None:
                clients = sample_clients(eligible, phase.participation, generator(seed, phase.name, "clients", k))
            else:
                clients = choose(k, eligible)
            if not clients:
                continue
            fates = self.faults.fates(seed, phase.name, k, clients)
            if not warm:
                present = next(client for client, fate in fates.items() if fate is not Fate.DROPPED)
                self._warm_up(result.state, data[present], phase)
                warm = True
            result, info = self._round(result, fates, k, job)
            if result.diverged:
                break
            if on_round is not None:
                on_round(info)
            self.fabric.call("on_round_end", federation=self, info=info)
            waited = 0 if info.loss < best - MIN_IMPROVEMENT else waited + 1
            best = min(best, info.loss)
            if phase.patience is not None and waited >= phase.patience:
                break
        return result

    @contextmanager
    def held_at_zero(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Keep parameters that are zero at zero through any training inside the block.

        Args:
            masks: by parameter name, tensors that broadcast to its shape: 1 where it may change, 0 where not.
        """
        self._masks = masks
        try:
            yield
        finally:
            self._masks = {}

    def _round(
        self, before: PhaseResult, fates: Mapping[int, Fate], k: int, job: _Job
    ) -> tuple[PhaseResult, RoundInfo]:
        mean = RunningMean(before.state)
        computing = [client for client, fate in fates.items() if fate is not Fate.DROPPED]

        works = {client: self._local_work(client, k, job) for client in computing}
        stacks = [[client] for client in works] if self._stacked is None else self._stacked.stacks(works)

        def compute(number: int) -> dict[int, _Report]:
            together = {client: works[client] for client in stacks[number]}
            return self._stack_round(together, fates, before.state, k, job, mean)

        work = {number: sum(job.work(stack).values()) for number, stack in enumerate(stacks)}
        found = spread(self.fabric, (job.phase.name, k, *work.items()), work, compute)
        by_client = {client: report for part in found.values() for client, report in part.items()}
        reports = {client: by_client[client] for client in computing}
        averaged, rejected = ([c for c, its in reports.items() if its.accepted is value] for value in (True, False))
        add_up(self.fabric, list(mean.totals.values()))
        mean.weight = sum(len(job.data[client]) for client in averaged)
        if job.synthetic:
            hand_round(self.fabric, work, lambda number: [t for c in stacks[number] for t in job.synthetic_tensors(c)])
        tolerated = rejected if self.faults.corrupt_rate else []
        diverged = rejected != tolerated or not averaged
        dropped, late = (tuple(c for c, its in fates.items() if its is fate) for fate in (Fate.DROPPED, Fate.LATE))
        cost = sum((report.cost for report in reports.values()), before.cost) + Cost(
            rounds=1,
            upload_bytes=self._bytes * (len(averaged) + len(rejected)),
            dropouts=len(dropped),
            stragglers=len(late),
            rejected_updates=len(tolerated),
        )
        state = before.state if diverged else mean.result()
        info = RoundInfo(
            phase=job.phase,
            round=k,
            participants=tuple(averaged),
            loss=sum(len(job.data[c]) * reports[c].loss for c in averaged) / max(mean.weight, 1),
            matching_distance=sum(reports[c].matching_distance for c in averaged) / max(len(averaged), 1),
            state=state,
            cost=cost,
            dropped=dropped,
            late=late,
            rejected=tuple(tolerated),
        )
        return PhaseResult(state, cost, diverged), info

    def _local_work(self, client: int, k: int, job: _Job) -> LocalWork:
        own = job.synthetic.get(client) if self.distillation is not None else None
        batches = generator(job.seed, job.phase.name, "batches", k, client)
        matching = generator(job.seed, "distillation", k, client)
        return LocalWork(job.data[client], job.phase, batches, self._masks, own, matching, job.stepper)

    def _stack_round(
        self,
        works: Mapping[int, LocalWork],
        fates: Mapping[int, Fate],
        before: State,
        k: int,
        job: _Job,
        mean: RunningMean,
    ) -> dict[int, _Report]:
        """The part of a round of clients that are trained together; finite updates are taken into ``mean``."""
        clock, distillation_clock = Clock(self.fabric.device), Clock(self.fabric.device)
        reports = {}
        for client, (result, state) in zip(works, self._train(works, before, clock, distillation_clock), strict=True):
            own_clock, accepted = Clock(self.fabric.device), None
            if fates[client] is not Fate.LATE:
                update = self._received(client, fates[client], before, state, k, job, own_clock)
                accepted = is_finite(update)
                if accepted:
                    mean.add(update, len(job.data[client]))
            own_clock.add(clock, 1 / len(works))
            cost = result.cost + own_clock.cost + Cost(distillation_seconds=distillation_clock.seconds / len(works))
            reports[client] = _Report(cost, result.loss, result.matching_distance, accepted)
        return reports

    def _train(
        self, works: Mapping[int, LocalWork], before: State, clock: Clock, distillation_clock: Clock
    ) -> list[tuple[LocalResult, State]]:
        """What clients did, and their trained parameters, which the next training overwrites."""
        if len(works) > 1:
            assert self._stacked is not None
            return self._stacked.train(list(works.values()), before, clock, distillation_clock)
        (work,) = works.values()
        self.load(before)
        result = (self._loop if work.plain else self._engine).train(work, clock, distillation_clock)
        return [(result, {name: p.detach() for name, p in self._inner.named_parameters()})]

    def _received(
        self, client: int, fate: Fate, before: State, update: State, k: int, job: _Job, clock: Clock
    ) -> State:
        """What the server has of a client with these trained parameters."""
        if fate is Fate.CORRUPT:
            update = corrupted(update, generator(job.seed, job.phase.name, "corruption", k, client))
        if self.faults.corrupt_rate and not is_finite(update):
            return update  # it will be rejected, so that nobody is to record it or to work on it
        if job.record is not None:
            job.record(k, client, len(job.data[client]), before, update)
        if job.transform is not None:
            with clock.running():
                update = job.transform(k, client, before, update)
        return update

    def _warm_up(self, state: State, data: LabelledSet, phase: Phase) -> None:
        """One uncounted forward and backward pass, so that kernels are chosen outside the clock."""
        self.load(state)
        images, labels = data.take(torch.arange(min(len(data), phase.batch_size), device=data.rows.device))
        self.fabric.backward(torch.nn.functional.cross_entropy(self.model(images), labels))
        self._optimizer.zero_grad()
