"""Fine-tune the synthetic sets of a trained federation (paper §3.3.2), or take what was fine-tuned before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.core.files import remove_unfinished
from quickdrop_bench.data.labelled import ImageData, LabelledSet
from quickdrop_bench.distillation.fine_tuning import FineTuningResult, fine_tune
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.ranks import hand_round, on_first, spread
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.training import (
    Checkpoint,
    alone_in,
    load_trained,
    planted,
    save_finished,
    train_federation,
)
from quickdrop_bench.store import artifacts
from quickdrop_bench.store.artifacts import TrainedFederation


def fine_tuned_federation(
    spec: FederationSpec,
    federation: Federation,
    data: ImageData,
    seed: int,
    folder_of: Callable[[FederationSpec], Path],
    settings: Mapping[str, Any],
) -> TrainedFederation:
    """The trained federation with F = ``spec.fine_tune`` initialisations of fine-tuning; F = 0 is the trained one.

    Every client refines its S_i alone, and the global model stays as it is. The work for a smaller F that was saved
    before is not done again: initialisation k is the same whatever F is.

    Args:
        spec: the federation.
        federation: built from the same spec, on the device of the data.
        data: the data set.
        seed: of the federation.
        folder_of: from a spec to ``<artifacts-dir>/<spec_hash>``.
        settings: as for :func:`~quickdrop_bench.harness.training.train_federation`.

    Raises:
        BadInput: as :func:`~quickdrop_bench.harness.training.train_federation`.
        ArithmeticError: training diverged, or the synthetic images are no longer finite.
    """
    folder = folder_of(spec)
    if not spec.fine_tune:
        return train_federation(spec, federation, data, seed, folder, settings)
    fabric = federation.fabric
    if not on_first(fabric, lambda: artifacts.is_complete(folder)):
        with alone_in(folder, fabric):
            if not on_first(fabric, lambda: artifacts.is_complete(folder)):
                return _fine_tune(spec, federation, data, seed, folder_of, settings)
    return load_trained(spec, federation, data, seed, folder)


def _fine_tune(
    spec: FederationSpec,
    federation: Federation,
    data: ImageData,
    seed: int,
    folder_of: Callable[[FederationSpec], Path],
    settings: Mapping[str, Any],
) -> TrainedFederation:
    fabric, folder = federation.fabric, folder_of(spec)
    on_first(fabric, lambda: remove_unfinished(folder))  # whoever wrote here was killed: this one is alone
    done = on_first(fabric, lambda: _done_before(spec, folder_of))
    start = fine_tuned_federation(replace(spec, fine_tune=done), federation, data, seed, folder_of, settings)
    synthetic = {i: kept.synthetic for i, kept in start.clients.items() if kept.synthetic is not None}
    if backdoor := planted(spec, data, {i: kept.rows for i, kept in start.clients.items()}, seed):
        data = backdoor.data
    clients = {i: LabelledSet(data.train.images, data.train.labels, kept.rows) for i, kept in start.clients.items()}
    checkpoint = Checkpoint(folder / "fine_tuning.ckpt")
    cost, progress = start.fine_tuning, {"done": done, "gradients": start.fine_tuning_gradients}
    if resumed := checkpoint.load(fabric, synthetic):
        cost, progress = resumed[0].cost, resumed[1][0]
    model, images = federation.scratch_model(), federation.distillation
    assert images is not None
    work = {i: len(own) for i, own in synthetic.items()}
    for k in range(progress["done"], spec.fine_tune):

        def refine(i: int, k: int = k) -> tuple[FineTuningResult, Cost]:
            clock = Clock(fabric.device)
            with clock.running():
                result = fine_tune(model, clients[i], synthetic[i], spec.fine_tuning, images, seed, i, k)
            return result, clock.cost

        reports = spread(fabric, ("fine-tuning", k), work, refine)
        hand_round(fabric, work, lambda i: [synthetic[i].images, synthetic[i].velocity])
        results = [result for result, _ in reports.values()]
        cost = sum((spent for _, spent in reports.values()), cost + _counted(results))
        distance = sum(r.matching_distance for r in results) / max(len(results), 1)
        progress = {"done": k + 1, "gradients": progress["gradients"] + sum(r.gradients for r in results)}
        fabric.call("on_initialisation_end", done=k + 1, of=spec.fine_tune, distance=distance)
        checkpoint.save_if_due(fabric, {}, cost, synthetic, [progress])
    if not all(own.images.isfinite().all() for own in synthetic.values()):
        raise ArithmeticError(
            f"fine-tuning diverged: synthetic images are not finite; lower --image-lr {spec.image_lr:g}"
        )
    trained = replace(
        start,
        spec={**spec.resolved(), "seed": seed, **settings, "base": _at(spec, 0, folder_of).name},
        fine_tuning=replace(cost, data_size=sum(len(clients[i]) for i in synthetic)),
        fine_tuning_gradients=progress["gradients"],
    )
    on_first(fabric, lambda: save_finished(trained, folder, checkpoint))
    return trained


def _done_before(spec: FederationSpec, folder_of: Callable[[FederationSpec], Path]) -> int:
    """The largest F below the spec's whose outcome is there."""
    smaller = range(spec.fine_tune - 1, 0, -1)
    return next((f for f in smaller if artifacts.is_complete(_at(spec, f, folder_of))), 0)


def _at(spec: FederationSpec, initialisations: int, folder_of: Callable[[FederationSpec], Path]) -> Path:
    return folder_of(replace(spec, fine_tune=initialisations))


def _counted(results: list[FineTuningResult]) -> Cost:
    return Cost(
        sample_gradients=sum(r.sample_gradients for r in results),
        second_order_sample_gradients=sum(r.second_order_sample_gradients for r in results),
    )
