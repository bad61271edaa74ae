"""The clients' updates of some training rounds, kept on the server's disk for FedEraser."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from quickdrop_bench.core.files import damaged, open_tensors, write_atomically
from quickdrop_bench.functional.aggregation import RunningMean, State, difference

INITIAL = "initial.safetensors"
COUNT = "num_examples"
"""Entry beside the parameters: |D_i|."""


def retained_rounds(rounds: int, every: int) -> range:
    """0-based rounds whose updates are kept: t_1 = 1, t_{j+1} = t_j + Δt, J = max(⌊K/Δt⌋, 1) of them.

    Example:
        >>> list(retained_rounds(10, 3)), list(retained_rounds(2, 3))
        ([0, 3, 6], [0])
    """
    return range(0, max(rounds // every, 1) * every, every)


@dataclass(frozen=True)
class UpdateRecorder:
    """A ``record`` for ``Federation.run``: writes updates of a training of K rounds, every Δt ≥ 1, as they come.

    A round that is trained again overwrites its files with equal ones.
    """

    folder: Path
    rounds: int
    every: int

    def __call__(self, k: int, client: int, num_examples: int, before: State, after: State) -> None:
        """Keep U_i = θ_i − θ_k, with θ_k the global model at the *start* of the round, if the round is retained."""
        if k in retained_rounds(self.rounds, self.every):
            if k == 0:
                _write(self.folder / INITIAL, before)
            update = {name: after[name] - before[name] for name in after}
            _write(_path(self.folder, k, client), {**update, COUNT: torch.tensor(num_examples)})


@dataclass(frozen=True)
class UpdateHistory:
    """Reads what an :class:`UpdateRecorder` wrote into a folder, onto a device.

    That names and shapes suit the model is for :func:`quickdrop_bench.store.artifacts.check_updates`.
    """

    folder: Path
    device: torch.device

    @cached_property
    def participants(self) -> dict[int, list[int]]:
        """Retained rounds in order → the clients whose updates arrived."""
        # Not "*": a writer that was killed leaves a hidden temporary file.
        paths = self.folder.glob("[0-9]*/[0-9]*.safetensors")
        found: dict[int, list[int]] = {}
        for k, client in sorted((int(path.parent.name), int(path.stem)) for path in paths):
            found.setdefault(k, []).append(client)
        return found

    def clients(self) -> set[int]:
        """Those that took part in any retained round."""
        return {client for clients in self.participants.values() for client in clients}

    def initial(self) -> State:
        """θ_0, before the first round.

        Raises:
            BadInput: the file is missing or damaged.
        """
        return self._read(self.folder / INITIAL)[0]

    def update(self, k: int, client: int) -> tuple[State, int]:
        """U_i of a retained round, and |D_i|.

        Raises:
            BadInput: the file is missing or damaged.
        """
        return self._read(_path(self.folder, k, client), counted=True)

    def _read(self, path: Path, *, counted: bool = False) -> tuple[State, int]:
        try:
            with open_tensors(path, str(self.device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            count = int(tensors.pop(COUNT)) if counted else 1
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            name, reason = path.relative_to(self.folder.parent), getattr(error, "strerror", None)
            raise damaged(self.folder.parent, name, reason or type(error).__name__) from error
        return tensors, count

    def stored_bytes(self, rounds: Iterable[int]) -> int:
        """4·P·(1 + Σ_j participants of round t_j): float32 updates of these rounds and θ_0, on the server."""
        parameters = sum(value.numel() for value in self.initial().values())
        return 4 * parameters * (1 + sum(len(self.participants[k]) for k in rounds))


def last_part(history: UpdateHistory, leavers: Collection[int]) -> tuple[State, float] | None:
    """What some clients' updates in the last retained round have beyond those of all, and their share of its samples.

    Returns:
        U_ℓ − Σ_i p_i·U_i, with the leavers' own mean U_ℓ, and p_ℓ in (0, 1); None if all or none of the round's clients
        are leavers.
    """
    k = max(history.participants, default=0)
    initial = history.initial()
    leaving, everyone = RunningMean(initial), RunningMean(initial)
    for client in history.participants.get(k, ()):
        update, size = history.update(k, client)
        everyone.add(update, size)
        if client in leavers:
            leaving.add(update, size)
    if not 0 < leaving.weight < everyone.weight:
        return None
    return difference(leaving.result(), everyone.result()), leaving.weight / everyone.weight


def mean_distances(
    history: UpdateHistory, groups: Sequence[Collection[int]], *, from_start: bool
) -> list[State | None]:
    """Φ of each group of clients: the mean over those recorded of Σ_t |θ_i^t − θ_0|, elementwise.

    Args:
        history: of every round, or with ``from_start`` off of any.
        groups: client ids.
        from_start: measure from θ_0; else from the start of the round.

    Returns:
        By group; None for one of whose clients nothing was recorded.
    """
    moved = {name: torch.zeros_like(value) for name, value in history.initial().items()}  # θ_t − θ_0
    sums = [{name: torch.zeros_like(value) for name, value in moved.items()} for _ in groups]
    for k, clients in history.participants.items():
        mean = RunningMean(moved)
        for client in clients:
            update, size = history.update(k, client)
            mean.add(update, size)
            for total in (total for total, group in zip(sums, groups, strict=True) if client in group):
                for name, value in total.items():
                    value += (update[name] + moved[name] if from_start else update[name]).abs()
        step = mean.result()
        moved = {name: value + step[name] for name, value in moved.items()}
    counts = [len(history.clients() & {*group}) for group in groups]
    return [
        {name: value / count for name, value in total.items()} if count else None
        for total, count in zip(sums, counts, strict=True)
    ]


def _path(folder: Path, k: int, client: int) -> Path:
    return folder / f"{k:04d}" / f"{client:04d}.safetensors"


def _write(path: Path, tensors: State) -> None:
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # Through memory: what the library's own writer writes, no other user may read.
    write_atomically(path, lambda temporary: temporary.write_bytes(save(own)))
