"""The request engine: what a request meets and what happens to it, for tables, sweeps and served requests alike.

A request arrives at a :class:`Deployment`. :func:`stages` runs a method's stages in their order, and every metric of
:mod:`quickdrop_bench.evaluation` judges the model after each, see :meth:`Deployment.judged`. Who writes rows, keeps
model versions or only counts what it would cost, comes on top.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.data.backdoor import Planted
from quickdrop_bench.data.labelled import ImageData, LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.evaluation.metric import Evaluated
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.federation.history import UpdateHistory
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.training import planted, sample_groups, training_phase
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.context import ClientData
from quickdrop_bench.methods.registry import SMALL_SETS, StageResult
from quickdrop_bench.store import artifacts
from quickdrop_bench.store.artifacts import TrainedFederation

UNLEARN, RELEARN = "unlearn", "relearn"


def needs(method: Method, action: str) -> frozenset[str]:
    """What a method needs; those with small sets learn again from these, all others from original data."""
    return method.needs | ({"forget-data"} if action == RELEARN and not method.needs & SMALL_SETS else set())


def still_forgotten(
    action: str, request: UnlearningRequest, gone: Iterable[UnlearningRequest]
) -> tuple[UnlearningRequest, ...]:
    """What is forgotten once a request was served, if ``gone`` was before."""
    if action == UNLEARN:
        return (*gone, request)
    left: list[UnlearningRequest] = []
    back = {*request.targets}
    for r in gone:
        targets = tuple(t for t in r.targets if r.level != request.level or t not in back)
        left += [replace(r, targets=targets)] if targets else []
    return tuple(left)


@dataclass(frozen=True, eq=False)
class Deployment:
    """A trained federation at which requests arrive.

    Attributes:
        federation: runs phases; built from the same spec.
        spec: of the federation.
        trained: its state, and what server and clients kept.
        folder: where that lies.
        data: the data set on the federation's device; None where only small sets are to be had.
    """

    federation: Federation
    spec: FederationSpec
    trained: TrainedFederation
    folder: Path
    data: ImageData | None

    @property
    def updates(self) -> Path:
        """The update history; that of a fine-tuned federation lies with the one that it was made from."""
        base = str(self.trained.spec.get("base", ""))
        return (self.folder.parent / base if re.fullmatch(r"[0-9a-f]+", base) else self.folder) / artifacts.UPDATES

    @cached_property
    def planted(self) -> Planted | None:
        """The backdoor of one client, if there is one; as it was in training."""
        rows = {i: kept.rows for i, kept in self.trained.clients.items()}
        return planted(self.spec, self.data, rows, int(self.trained.spec["seed"])) if self.data else None

    @property
    def held(self) -> ImageData | None:
        """The data set as the clients hold it: with the images of a backdoored one."""
        return self.planted.data if self.planted else self.data

    @cached_property
    def clients(self) -> dict[int, ClientData]:
        """What each has; without the data set, no original images."""
        nowhere = LabelledSet.of(torch.empty(0, *self.trained.data.image_shape), torch.empty(0, dtype=torch.int64))
        train = self.held and self.held.train
        originals = {
            i: LabelledSet(train.images, train.labels, c.rows) if train else nowhere
            for i, c in self.trained.clients.items()
        }
        seed = int(self.trained.spec["seed"])
        return {
            i: ClientData(
                originals[i], c.subset, c.augmentation, c.synthetic, sample_groups(self.spec, originals[i], seed, i)
            )
            for i, c in self.trained.clients.items()
        }

    def context(
        self,
        request: UnlearningRequest,
        forgotten: Sequence[UnlearningRequest] = (),
        state: State | None = None,
        absent: Collection[int] = (),
    ) -> Context:
        """What a method is given.

        Args:
            request: what to forget, or to learn again.
            forgotten: all else that the model is not to know.
            state: the model that the request meets; None for the one that was trained.
            absent: clients that take no part.
        """
        updates, state = self.updates, state or self.trained.state
        if updates.parent != self.folder and updates.is_dir():  # that folder was not loaded
            artifacts.check_updates(updates.parent, state)
        return Context(
            federation=self.federation,
            training=training_phase(self.spec),
            clients={i: client for i, client in self.clients.items() if i not in absent},
            state=state,
            request=request,
            forgotten=(*forgotten, request),
            seed=int(self.trained.spec["seed"]),
            history=UpdateHistory(updates, self.federation.fabric.device) if updates.is_dir() else None,
        )

    def judged(
        self, state: State, about: Sequence[UnlearningRequest], forgotten: Sequence[UnlearningRequest]
    ) -> Evaluated:
        """A model with what metrics judge it on; the federation holds it until something else runs."""
        assert self.data is not None
        self.federation.load(state)
        return Evaluated(
            model=self.federation.model,
            state=state,
            original=self.trained.state,
            test=self.data.test,
            classes=len(self.data.class_names),
            clients={i: client.original for i, client in self.clients.items()},
            groups={i: client.groups for i, client in self.clients.items()},
            about=about,
            forgotten=forgotten,
            seed=int(self.trained.spec["seed"]),
            planted=self.planted,
        )


def stages(
    action: str,
    context: Context,
    method: Method,
    *,
    relearn: bool = False,
    on_round: Callable[[str, RoundInfo], object] | None = None,
) -> Iterator[tuple[str, StageResult]]:
    """Serve a request: its stages by name, one after the other, up to the first that diverges.

    Args:
        action: :data:`UNLEARN` or :data:`RELEARN`.
        context: the request.
        method: that serves it.
        relearn: learn again afterwards what was forgotten (§4.7).
        on_round: told the stage and every round of unlearning and recovery.
    """

    def told(stage: str) -> Context:
        return replace(context, on_round=partial(on_round, stage)) if on_round else context

    if action == RELEARN:
        yield "relearning", method.relearn(context, context.state)
        return
    last = method.unlearn(told("unlearning"))
    yield "unlearning", last
    if not last.diverged and (recovered := method.recover(told("recovery"), last.state)) is not None:
        last = recovered
        yield "recovery", last
    if relearn and not last.diverged:
        yield "relearning", method.relearn(context, last.state)


def total_cost(results: Iterable[StageResult]) -> Cost:
    """Of several stages."""
    return sum((result.cost for result in results), Cost())
