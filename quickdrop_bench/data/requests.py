"""What is asked to be forgotten, and which samples that means."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.seeding import generator

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet

OPTIONS = {"class": "--class", "client": "--client", "sample": "--samples"}
"""The option of each level of requests."""

LEVELS = tuple(OPTIONS)
"""Request levels: those of the paper (§2.2), and single samples."""


@dataclass(frozen=True)
class UnlearningRequest:
    """A request to forget (paper §2.2).

    Attributes:
        level: ``class``: that class's data on all clients; ``client``: all data of a client; ``sample``: single
            training images.
        targets: class indices, in the data set's order of classes; client ids; or rows of the training set, each of
            which one client holds: these in ascending order, whatever order they are given in.
    """

    level: str
    targets: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise BadInput("request level", self.level, f"use one of {', '.join(LEVELS)}")
        if self.level == "sample":
            object.__setattr__(self, "targets", tuple(sorted({*self.targets})))

    @classmethod
    def parse(cls, text: str) -> UnlearningRequest:
        """The request that is written like this.

        Raises:
            BadInput: no request is written like this.

        Example:
            >>> UnlearningRequest.parse("client-3+4")
            UnlearningRequest(level='client', targets=(3, 4))
        """
        level, _, targets = str(text).partition("-")
        numbers = targets.split("+")
        if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
            raise BadInput("request", text, "it is written as class-9 or client-3")
        return cls(level, tuple(map(int, numbers)))

    def __str__(self) -> str:
        return f"{self.level}-{'+'.join(str(t) for t in self.targets)}"

    @property
    def option(self) -> str:
        """Of the command line."""
        return OPTIONS[self.level]

    def named(self, class_names: Sequence[str]) -> str:
        """As people read it: the classes' names in place of their numbers, e.g. ``class-truck``; samples by a label."""
        if self.level == "sample":
            return _label(self.targets)
        return f"{self.level}-{'+'.join(self.target_name(t, class_names) for t in self.targets)}"

    def target_name(self, target: int, class_names: Sequence[str]) -> str:
        """The name of a target class, where it exists; the number of a client or a row."""
        known = self.level == "class" and 0 <= target < len(class_names)
        return class_names[target] if known else str(target)

    def check(self, classes: int, clients: int, images: int = 0) -> None:
        """Raise :class:`BadInput` unless every target exists; ``images`` are those of the training set."""
        count = {"class": classes, "client": clients, "sample": images}[self.level]
        if not self.targets:
            raise BadInput(self.option, "without a value", f"a number between 0 and {count - 1} is needed")
        for target in self.targets:
            if not 0 <= target < count:
                raise BadInput(self.option, target, f"between 0 and {count - 1}")


@dataclass(frozen=True)
class Samples:
    """Samples to be forgotten, before it is known who holds what: so many at random, or listed.

    Attributes:
        count: how many are drawn, if none are listed.
        listed: (client, row of the training set) of each.
    """

    count: int
    listed: tuple[tuple[int, int], ...] = ()

    level = "sample"

    def __str__(self) -> str:
        return _label(row for _, row in self.listed) if self.listed else f"{self.level}-{self.count}"

    def named(self, class_names: Sequence[str]) -> str:
        """As people read it."""
        return str(self)

    def of(
        self, holdings: Mapping[int, LabelledSet], gone: Sequence[UnlearningRequest], seed: int, *, again: bool = False
    ) -> UnlearningRequest:
        """The request at a federation.

        All samples that are not forgotten are equally likely to be drawn, whoever holds them.

        Args:
            holdings: D_i by client.
            gone: what is forgotten already; the draw depends on how many requests that are, too.
            seed: of the federation.
            again: draw from the samples that requests of this level forgot, to learn them again.

        Raises:
            BadInput: there are fewer, or a client does not hold what is listed.
        """
        free = {i: _available(z, i, gone, again=again) for i, z in holdings.items()}
        if not self.listed:
            return UnlearningRequest(self.level, self._drawn(sorted(set().union(*free.values())), seed, len(gone)))
        held = {i: {*z.dataset_rows().tolist()} for i, z in holdings.items()}
        for client, row in self.listed:
            if row not in held.get(client, ()):
                raise BadInput("--samples", f"{client},{row}", f"on seed {seed}, client {client} holds no such row")
            if row not in free[client]:
                state = "not forgotten" if again else "forgotten already"
                raise BadInput("--samples", f"{client},{row}", f"on seed {seed}, this row is {state}")
        return UnlearningRequest(self.level, tuple(row for _, row in self.listed))

    def _drawn(self, free: Sequence[int], seed: int, step: int) -> tuple[int, ...]:
        import torch

        if not 1 <= self.count <= len(free):
            raise BadInput("--samples", self.count, f"on seed {seed}, there are {len(free)} to be drawn from")
        order = torch.randperm(len(free), generator=generator(seed, "samples", step))
        return tuple(free[k] for k in order[: self.count].tolist())


def _available(data: LabelledSet, client: int, gone: Sequence[UnlearningRequest], *, again: bool) -> set[int]:
    """Rows of a client's data that can be forgotten, or learnt ``again``."""
    left = data.with_rows(forgotten_rows(gone), keep=True) if again else retain_part(data, client, gone)
    return {*left.dataset_rows().tolist()}


def _label(rows: Iterable[int]) -> str:
    """What tells samples apart from others: their number, and a hash of which they are."""
    ordered = sorted(rows)
    return f"sample-{len(ordered)}-{hashlib.sha256(','.join(map(str, ordered)).encode()).hexdigest()[:8]}"


def forgotten_classes(requests: Sequence[UnlearningRequest]) -> set[int]:
    """Classes that the requests forget on all clients."""
    return {target for r in requests if r.level == "class" for target in r.targets}


def forgotten_rows(requests: Sequence[UnlearningRequest]) -> set[int]:
    """Rows of the training set that requests of level ``sample`` forget."""
    return {target for r in requests if r.level == "sample" for target in r.targets}


def forget_part(data: LabelledSet, client: int, request: UnlearningRequest) -> LabelledSet:
    """The part of a client's data that the request forgets: its share of D_f (or S_f)."""
    match request.level:
        case "class":
            return data.with_classes(request.targets, keep=True)
        case "client":
            return data if client in request.targets else data.none()
        case _:
            return data.with_rows(request.targets, keep=True)


def retain_part(data: LabelledSet, client: int, forgotten: Sequence[UnlearningRequest]) -> LabelledSet:
    """The part of a client's data that none of the requests forgets: its share of D (or S) without D_f (S_f)."""
    if any(r.level == "client" and client in r.targets for r in forgotten):
        return data.none()
    left, rows = data.with_classes(forgotten_classes(forgotten), keep=False), forgotten_rows(forgotten)
    return left.with_rows(rows, keep=False) if rows else left
