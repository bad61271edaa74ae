"""Generated bad input: one sentence that names the culprit, exit code 2, nothing lost; never a traceback.

The examples are the same in every run. ``MANY_EXAMPLES=1`` asks for ten times as many.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import PARTITION
from tests.damage import JUNK, TREES, Damage, artifact_damages, picture_damages, result_damages
from tests.integration.judging import (
    BASES,
    CULPRITS,
    NO_NUMBER,
    PICTURES,
    SERVED,
    TEXTS,
    base,
    call,
    check,
    culprit,
    federation,
    judge,
    kept,
    numeric,
    options,
    remove,
)

pytestmark = pytest.mark.long

Property = Callable[..., None]


def examples(count: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Property], Callable[[], None]]:
    """Turn the body of a test into a property with the same examples in every run."""
    own = settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    return lambda body: own(given(**strategies)(body))


def sizes(few: int, many: int) -> pytest.MarkDecorator:
    """Run a property on few examples, or on many where the environment asks for ``MANY_EXAMPLES``."""
    return pytest.mark.parametrize("count", [many if os.environ.get("MANY_EXAMPLES") else few])


LIGHT = sorted(BASES.keys() - {"table", "figure", "sweep", "report"})
COMMAND = st.sampled_from([*LIGHT, *LIGHT, "table", "figure", "sweep"])
"""Commands whose options take long to build come up less often."""


@st.composite
def bad_numbers(draw: st.DrawFn) -> tuple[str, str, str]:
    """A command, one of its numeric options, and what is no number or none of its range."""
    command = draw(COMMAND.filter(lambda name: bool(numeric(name))))
    return command, draw(st.sampled_from(numeric(command))), draw(st.sampled_from(NO_NUMBER))


@sizes(90, 900)
def test_what_is_no_number_or_out_of_range_is_refused_by_option(idle: Path, count: int) -> None:
    @examples(count, drawn=bad_numbers())
    def holds(drawn: tuple[str, str, str]) -> None:
        command, option, value = drawn
        check([*base(command), f"{option}={value}"], culprit(option))

    holds()


@st.composite
def any_options(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """A command, options with any values, repeated and contradictory ones among them, and what a sentence names."""
    command = draw(COMMAND.filter(lambda name: bool(options(name))))
    argv, named = [], []
    for _ in range(draw(st.integers(1, 3))):
        option = draw(st.sampled_from(sorted(options(command))))
        value = draw(st.sampled_from(JUNK) | st.text(max_size=8).filter(lambda text: "\0" not in text))
        flag = options(command)[option] == "None"
        argv += [option] if flag else [option, value] if draw(st.booleans()) else [f"{option}={value}"]
        named += [*culprit(option), " ".join(value.split()) or option]
    return command, argv, named


@sizes(100, 1500)
def test_any_values_end_in_a_sentence_or_are_valid(idle: Path, count: int) -> None:
    @examples(count, drawn=any_options())
    def holds(drawn: tuple[str, list[str], list[str]]) -> None:
        command, argv, named = drawn
        check([*base(command), *argv], [*named, "unrecognized", "expected", "RUN"], codes=(0, 2))

    holds()


@st.composite
def malformed(draw: st.DrawFn) -> list[str]:
    """A command line that no parser accepts."""
    command = draw(COMMAND)
    word = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0="), min_size=1, max_size=8).map(str.strip))
    known = options(command)
    valued = [name for name, kind in known.items() if kind != "None" and name[:-1] not in known]
    kinds: list[st.SearchStrategy[list[str]]] = [
        st.just([f"{command}{word}x"]),
        st.just([*BASES[command], f"--{word}nope"]),
        st.just([*BASES[command], f"--no-such-{word}=1"]),
        st.just([*BASES[command], "more", f"{word}words"]),
        st.just([]),
    ]
    if valued:
        option = draw(st.sampled_from(valued))
        kinds += [st.just([*BASES[command], option]), st.just([*BASES[command], option[:-1], "1"])]
    return draw(st.one_of(kinds))


@sizes(60, 600)
def test_malformed_command_lines_are_refused(idle: Path, count: int) -> None:
    run = next(Path("artifacts").iterdir()).name

    @examples(count, argv=malformed())
    def holds(argv: list[str]) -> None:
        line = [run if part == "@" else part for part in argv]
        check(line, ["command", "expected", "--"])

    holds()


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, bytes]:
    """A command, and what its configuration file holds."""
    command = draw(st.sampled_from(["distribution", "distribution", "train", "table", "sweep"]))
    keys = [name.strip("-").replace("-", "_") for name in options(command) if "." not in name]
    keys = [key for key in keys if not key.endswith("dir")]  # folders are the user's to choose
    mapping = st.dictionaries(st.sampled_from(keys) | st.text(max_size=6), TREES, min_size=1, max_size=4)
    dumped = (mapping | TREES).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode())
    text = st.sampled_from(TEXTS).map(str.encode) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace"))
    return command, draw(st.one_of(dumped, dumped, text, st.binary(max_size=40)))


@sizes(80, 1200)
def test_any_configuration_file_is_refused_or_valid(idle: Path, count: int) -> None:
    @examples(count, drawn=configs())
    def holds(drawn: tuple[str, bytes]) -> None:
        command, content = drawn
        Path("any.yaml").write_bytes(content)
        check([*base(command), "--config", "any.yaml"], ["--", "command line not understood"], codes=(0, 2))

    try:
        holds()
    finally:
        Path("any.yaml").unlink(missing_ok=True)


@sizes(110, 1500)
def test_damaged_artifacts_are_refused_by_file_or_still_valid(at_home: Path, count: int) -> None:
    @examples(
        count,
        command=st.sampled_from([*SERVED * 4, "train", "table"]),
        several=st.lists(artifact_damages(), min_size=1, max_size=2),
    )
    def holds(command: str, several: list[Damage]) -> None:
        argv = base(command)
        with kept(federation()) as folder, kept(Path("results")):
            for damage in several:
                damage(folder)
            ended = call(argv)
        judge(ended, [*argv, *(d.__name__ for d in several)], CULPRITS, codes=(0, 2))

    holds()


@sizes(90, 1500)
def test_damaged_image_folders_are_refused_or_still_valid(at_home: Path, count: int) -> None:
    @examples(
        count,
        several=st.lists(picture_damages(), min_size=1, max_size=2),
        size=st.sampled_from([[], ["--image-size", "8"]]),
    )
    def holds(several: list[Damage], size: list[str]) -> None:
        shutil.copytree("pics", "damaged")
        try:
            for damage in several:
                damage(Path("damaged"))
            ended = call(["distribution", *PARTITION, *PICTURES, *size, "--results-dir", "drawn"])
        finally:
            remove(Path("damaged"))
            shutil.rmtree("drawn", ignore_errors=True)
        judge(
            ended, [d.__name__ for d in several], ["--data-dir", "--image-size", "--clients", "--alpha"], codes=(0, 2)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quickdrop_bench.cli.training.write_distribution", lambda *args: [])
        holds()


@sizes(30, 600)
def test_any_rows_are_read_or_refused(idle: Path, count: int) -> None:
    rows = Path("results/quick/table2/rows.jsonl")
    original = rows.read_bytes()

    @examples(count, command=st.sampled_from([*["table"] * 8, "sweep", "sweep", "report"]), damage=result_damages())
    def holds(command: str, damage: Damage) -> None:
        damage(rows)
        try:
            check(base(command), ["--results-dir"], codes=(0, 2))
        finally:
            remove(rows)
            rows.write_bytes(original)

    holds()
