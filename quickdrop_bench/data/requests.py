"""What is asked to be forgotten, and which samples that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quickdrop_bench.core.errors import BadInput

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet

__all__ = ["LEVELS", "UnlearningRequest", "forget_part", "forgotten_classes", "retain_part"]

LEVELS = ("class", "client")
"""Request levels of the paper (§2.2); sample-level requests would be a third."""


@dataclass(frozen=True)
class UnlearningRequest:
    """A request to forget (paper §2.2).

    Attributes:
        level: ``class``: that class's data on all clients; ``client``: all data of a client.
        targets: class indices, in the data set's order of classes, or client ids.
    """

    level: str
    targets: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise BadInput("request level", self.level, f"use one of {', '.join(LEVELS)}")

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

    def named(self, class_names: Sequence[str]) -> str:
        """As people read it: with the classes' names in place of their numbers, e.g. ``class-truck``."""
        return f"{self.level}-{'+'.join(self.target_name(t, class_names) for t in self.targets)}"

    def target_name(self, target: int, class_names: Sequence[str]) -> str:
        """The name of a target class, where it exists; the number of a client."""
        known = self.level == "class" and 0 <= target < len(class_names)
        return class_names[target] if known else str(target)

    def check(self, classes: int, clients: int) -> None:
        """Raise :class:`BadInput` unless every target exists."""
        count = classes if self.level == "class" else clients
        if not self.targets:
            raise BadInput(f"--{self.level}", "without a value", f"a number between 0 and {count - 1} is needed")
        for target in self.targets:
            if not 0 <= target < count:
                raise BadInput(f"--{self.level}", target, f"between 0 and {count - 1}")


def forgotten_classes(requests: Sequence[UnlearningRequest]) -> set[int]:
    """Classes that the requests forget on all clients."""
    return {target for r in requests if r.level == "class" for target in r.targets}


def forget_part(data: LabelledSet, client: int, request: UnlearningRequest) -> LabelledSet:
    """The part of a client's data that the request forgets: its share of D_f (or S_f)."""
    if request.level == "class":
        return data.with_classes(request.targets, keep=True)
    return data if client in request.targets else data.none()


def retain_part(data: LabelledSet, client: int, forgotten: Sequence[UnlearningRequest]) -> LabelledSet:
    """The part of a client's data that none of the requests forgets: its share of D (or S) without D_f (S_f)."""
    if any(r.level == "client" and client in r.targets for r in forgotten):
        return data.none()
    return data.with_classes(forgotten_classes(forgotten), keep=False)
