"""A typed name → object table with helpful errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from quickdrop_bench.core.errors import BadInput

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind by name, in the order of their registration.

    Args:
        option: the command-line option that selects from this registry; it is named in errors.

    Example:
        >>> colours = Registry[int]("--colour")
        >>> _ = colours.register("red")(1)
        >>> colours["red"], list(colours)
        (1, ['red'])
    """

    def __init__(self, option: str) -> None:
        self.option = option
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that stores an object under ``name``.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._items:
            raise ValueError(f"{name!r} is registered already for {self.option}")

        def store(item: T) -> T:
            self._items[name] = item
            return item

        return store

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            close = get_close_matches(name, self._items, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            allowed = f"{hint}use one of {', '.join(self._items)}"
            raise BadInput(self.option, name, allowed) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
