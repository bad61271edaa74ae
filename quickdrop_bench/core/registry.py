"""A typed name → object table that finds its own modules and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from quickdrop_bench.core.errors import BadInput, others_code

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind by name, in the order of their registration.

    The first look-up imports what registers them: every module of a package, then the entry points of other packages.

    Args:
        option: the command-line option that selects from this registry; it is named in errors.
        group: of entry points, e.g. ``quickdrop_bench.methods``; None for a registry that is filled by hand.
        package: whose modules register themselves; None if it is called like the group.
        order: of the names, by what an object's value is; None for that of registration.

    Example:
        >>> colours = Registry[int]("--colour")
        >>> _ = colours.register("red")(1)
        >>> colours["red"], list(colours)
        (1, ['red'])
    """

    def __init__(
        self,
        option: str,
        group: str | None = None,
        package: str | None = None,
        order: Callable[[T], int] | None = None,
    ) -> None:
        self.option = option
        self._group = group
        self._package = package or group
        self._order = order
        self._loaded = group is None
        self._items: dict[str, T] = {}

    def load(self) -> None:
        """Import what registers itself here, once; look-ups do it by themselves."""
        if self._loaded or self._group is None or self._package is None:
            return
        self._loaded = True  # before the imports, which may look something up
        for module in iter_modules(import_module(self._package).__path__):
            import_module(f"{self._package}.{module.name}")
        for plugin in entry_points(group=self._group):
            with others_code("entry point", f"{self._group} {getattr(plugin, 'value', '')}"):
                plugin.load()

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
        self.load()
        try:
            return self._items[name]
        except KeyError:
            close = get_close_matches(name, self._items, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            allowed = f"{hint}use one of {', '.join(self)}"
            raise BadInput(self.option, name, allowed) from None

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self.load()
        order = self._order
        return iter(sorted(self._items, key=lambda name: order(self._items[name])) if order else self._items)

    def __len__(self) -> int:
        self.load()
        return len(self._items)
