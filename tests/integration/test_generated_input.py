"""Generated bad input: one sentence that names the culprit, exit code 2, nothing lost; never a traceback.

The examples are the same in every run. ``MANY_EXAMPLES=1`` asks for ten times as many.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.damage import JUNK, Damage, artifact_damages, picture_damages, result_damages
from tests.integration.judging import (
    BASES,
    CULPRITS,
    PICTURES,
    ROWS,
    SERVED,
    base,
    call,
    check,
    culprit,
    federation,
    judge,
    kept,
    options,
)

pytestmark = pytest.mark.long


def examples(few: int, many: int) -> settings:
    """As many examples, the same in every run; many where the environment asks for ``MANY_EXAMPLES``."""
    count = many if os.environ.get("MANY_EXAMPLES") else few
    phases = [Phase.explicit, Phase.generate, Phase.shrink]
    return settings(
        max_examples=count, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=phases
    )


@st.composite
def any_options(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """A command, options with any values, repeated and contradictory ones among them, and what a sentence names."""
    command = draw(st.sampled_from([name for name in BASES if options(name)]))
    argv, named = [], []
    for _ in range(draw(st.integers(1, 3))):
        option = draw(st.sampled_from(sorted(options(command))))
        value = draw(st.sampled_from(JUNK) | st.text(max_size=8).filter(lambda text: "\0" not in text))
        flag = options(command)[option] == "None"
        argv += [option] if flag else [option, value] if draw(st.booleans()) else [f"{option}={value}"]
        named += [*culprit(option), " ".join(value.split()) or option]
    return command, argv, named


@examples(100, 1500)
@given(drawn=any_options())
def test_any_values_end_in_a_sentence_or_are_valid(idle: Path, drawn: tuple[str, list[str], list[str]]) -> None:
    command, argv, named = drawn
    check([*base(command), *argv], [*named, "unrecognized", "expected", "RUN"], codes=(0, 2))


@examples(110, 1500)
@given(
    command=st.sampled_from([*SERVED * 4, "train", "table"]),
    several=st.lists(artifact_damages(), min_size=1, max_size=2),
)
def test_damaged_artifacts_are_refused_by_file_or_still_valid(
    at_home: Path, command: str, several: list[Damage]
) -> None:
    argv = base(command)
    with kept(federation()) as folder, kept(Path("results")):
        for damage in several:
            damage(folder)
        ended = call(argv)
    judge(ended, [*argv, *(d.__name__ for d in several)], CULPRITS, codes=(0, 2))


@examples(90, 1500)
@given(several=st.lists(picture_damages(), min_size=1, max_size=2), size=st.sampled_from([[], ["--image-size", "8"]]))
def test_damaged_image_folders_are_refused_or_still_valid(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, several: list[Damage], size: list[str]
) -> None:
    monkeypatch.setattr("quickdrop_bench.cli.training.write_distribution", lambda *args: [])
    with kept(Path("pics")) as folder, kept(Path("results")):
        for damage in several:
            damage(folder)
        ended = call(["distribution", *PICTURES, *size])
    culprits = ["--data-dir", "--image-size", "--clients", "--alpha"]
    judge(ended, [d.__name__ for d in several], culprits, codes=(0, 2))


@examples(30, 600)
@given(command=st.sampled_from([*["table"] * 8, "sweep", "sweep", "report"]), damage=result_damages())
def test_any_rows_are_read_or_refused(idle: Path, command: str, damage: Damage) -> None:
    with kept(Path("results")) as folder:
        damage(folder / ROWS)
        check(base(command), ["--results-dir"], codes=(0, 2))
