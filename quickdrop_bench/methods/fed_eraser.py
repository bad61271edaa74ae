"""FedEraser: replays the recorded training without the forgotten, in re-calibrated steps (Liu et al., IWQoS 2021)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Clock, Cost, Storage
from quickdrop_bench.core.errors import positive
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery, Relearning, stage_phase

if TYPE_CHECKING:
    import torch

    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.federation.history import UpdateHistory
    from quickdrop_bench.federation.phase import Phase
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context

log = logging.getLogger(__name__)


@METHODS.register("federaser")
@dataclass(frozen=True)
class FedEraser(Recovery, Relearning):
    """Starts at θ_0 and takes each retained round again, without the forgotten.

    In a round, its remaining participants train for ⌈r·T⌉ local steps or passes on what they retain. Each of their
    updates keeps its direction and gets, tensor by tensor, the length of the update that the server stored; the server
    adds the mean, weighted by retained samples. The released code instead calibrates the clients' unweighted mean,
    and measures lengths from the model *after* a round, which makes them far too short.

    Attributes:
        calibration_ratio: local steps of calibration, as a share r of the training's, in (0, 1].
        calibration_lr: learning rate η of calibration; without it the training's.
        replay_every: replay every m-th of the recorded rounds.
    """

    title: ClassVar[str] = "FedEraser"
    color: ClassVar[str] = "#56B4E9"
    order: ClassVar[int] = 200
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"retain-data", "update-history"})
    summary: ClassVar[str] = "replays stored updates without the forget set, recalibrated"
    search: ClassVar[Search] = {
        "unlearning": {"calibration_ratio": (0.25, 0.5, 1.0), "replay_every": (1, 2)},
        "recovery": RECOVERY_SEARCH,
    }

    calibration_ratio: float = 0.5
    calibration_lr: float | None = None
    replay_every: int = 1
    recover_rounds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("federaser.calibration_ratio", self.calibration_ratio, at_most=1)
        positive("federaser.replay_every", self.replay_every, at_least=1)

    def calibration(self, training: Phase, rounds: int) -> Phase:
        """The calibration phase: ⌈r·T⌉ local steps or passes, as T counts, in each of the retained rounds."""
        lr = training.lr if self.calibration_lr is None else self.calibration_lr
        steps, epochs = self._share(training.local_steps), training.local_epochs
        return stage_phase(training, "unlearning", rounds, lr, steps, epochs and self._share(epochs))

    def _share(self, amount: int) -> int:
        # 0.07 · 100 is a little above 7 in floating point.
        return max(math.ceil(self.calibration_ratio * amount - 1e-9), 1)

    def unlearn(self, context: Context) -> StageResult:
        """Replay the retained rounds from θ_0; data and stored updates of who left are never read."""
        history, data = _history(context), context.retain_data()
        replay = _Replay(history, self.replay_every)
        start = None
        # θ_0 never saw a client that leaves, but the stored first updates did see forgotten classes and samples.
        if context.request.level == "client" and all(r.level == "client" for r in context.forgotten):
            start = replay.first_round(data, context.federation.fabric.device)
        phase = self.calibration(context.training, len(replay.rounds))
        # Not context.run: its patience would end the replay early, and every retained round has to be replayed.
        return context.federation.run(
            history.initial(),
            data,
            phase,
            context.seed,
            start=start,
            choose=replay.choose,
            record=replay.fetch,
            transform=replay.calibrated,
        )

    def storage(self, context: Context) -> Storage:
        """θ_0 and the updates of the rounds that are replayed, on the server."""
        history = _history(context)
        return Storage(server_bytes=history.stored_bytes(_Replay(history, self.replay_every).rounds))


class _Replay:
    """The hooks of ``Federation.run`` that turn its rounds into the retained ones.

    Args:
        history: the clients' updates by recorded round.
        every: m, of which every m-th is retained.
    """

    def __init__(self, history: UpdateHistory, every: int) -> None:
        from quickdrop_bench.federation.history import retained_rounds

        self._history = history
        self._fetched: dict[tuple[int, int], State] = {}
        recorded = sorted(history.participants)
        self.rounds = [recorded[j] for j in retained_rounds(len(recorded), every)] if recorded else []

    def choose(self, j: int, eligible: list[int]) -> list[int]:
        """Who took part in the j-th retained round and still has data."""
        participants = set(self._history.participants[self.rounds[j]])
        return [client for client in eligible if client in participants]

    def fetch(self, j: int, client: int, num_examples: int, before: State, after: State) -> None:
        """Read U_i from the disk, outside the method's time as all loading is; :meth:`calibrated` uses it next."""
        stored, _ = self._history.update(self.rounds[j], client)
        self._fetched[j, client] = stored
        if log.isEnabledFor(logging.DEBUG):
            from quickdrop_bench.functional.calibration import largest_growth

            growth = largest_growth(stored, {name: after[name] - before[name] for name in after})
            log.debug("round %d, client %d: updates grow up to %.3g times", self.rounds[j], client, growth)

    def calibrated(self, j: int, client: int, before: State, after: State) -> State:
        """The start of the round plus the calibrated update."""
        from quickdrop_bench.functional.calibration import calibrate

        fresh = {name: after[name] - before[name] for name in after}
        update = calibrate(self._fetched.pop((j, client)), fresh)
        return {name: before[name] + update[name] for name in update}

    def first_round(self, data: Mapping[int, LabelledSet], device: torch.device) -> StageResult | None:
        """The first retained round by the server alone: θ_0 + Σ w_i U_i; None if none of its clients is left."""
        from quickdrop_bench.functional.aggregation import RunningMean

        clients = self.choose(0, sorted(client for client, z in data.items() if len(z)))
        if not clients:
            return None
        initial = self._history.initial()
        clock, mean = Clock(device), RunningMean(initial)
        for client in clients:
            update, _ = self._history.update(self.rounds[0], client)
            with clock.running():
                mean.add(update, len(data[client]))
        with clock.running():
            step = mean.result()
            state = {name: value + step[name] for name, value in initial.items()}
        size = sum(len(z) for z in data.values())
        return StageResult(state, clock.cost + Cost(rounds=1, data_size=size))


def _history(context: Context) -> UpdateHistory:
    """What ``needs`` promises."""
    assert context.history is not None, "the federation kept no update history"
    return context.history
