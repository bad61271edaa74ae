"""Classes by name: their order, and which one a user means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quickdrop_bench.core.errors import BadInput

DIGITS = tuple("0123456789")
FASHION_MNIST = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""
CIFAR100 = tuple(_CIFAR100.split())

MOST_LISTED = 20
"""Classes that a sentence names."""


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Whole numbers first and by size, then the other names in alphabetical order."""
    return sorted(names, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def class_index(text: str, names: Sequence[str], note: str = "") -> int:
    """The class that a user means by a name or a number.

    A number is a name where any class is named by a number: what is asked for is what is shown. Elsewhere it is the
    position in the order of the classes, from 0.

    Args:
        text: as it was typed.
        names: of the classes, in their order.
        note: stands behind the value in the sentence of the error, e.g. that it is the default.

    Raises:
        BadInput: there is no such class.

    Example:
        >>> class_index("9", [*map(str, range(1, 12))]), class_index("2", ["ant", "bee", "cat"])
        (8, 2)
    """
    if text in names:
        return names.index(text)
    numbered = any(map(_is_number, names))
    if not numbered and _is_number(text) and int(text) < len(names):
        return int(text)
    listed = ", ".join(names[:MOST_LISTED]) + (" …" if len(names) > MOST_LISTED else "")
    allowed = f"use one of {listed}" + ("" if numbered else f", or its position, 0 to {len(names) - 1}")
    if list(names) == [*map(str, range(len(names)))]:
        allowed = f"between 0 and {len(names) - 1}"
    raise BadInput("--class", text + note, allowed)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
