"""Commands with bad input, and how they have to end: one sentence that names the culprit, exit code 2, nothing lost."""

from __future__ import annotations

import contextlib
import io
import resource
import shutil
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from quickdrop_bench.cli.main import main
from quickdrop_bench.cli.parser import declared
from tests.conftest import PARTITION, TINY

RUN = [*TINY, "--methods", "quickdrop"]
NO_NUMBER = ("abc", "", "1,2", "ü☃", "[1,2]", "{a: 1}", "nan", "-inf", "inf", "-1", "1e400", "1e", "--3", "½")
PICTURES = [*PARTITION, "--dataset", "imagefolder", "--data-dir", "pics", "--min-client-size", "0"]
ROWS = "quick/table2/rows.jsonl"
TEXTS = (
    "a: &a [1]\nrounds: *a\n", "rounds: &a 2\nclients: *a\n", "<<: {rounds: 2}\n", "rounds: 2\n---\nrounds: 3\n",
    "- 1\n", "\trounds: 2\n", "rounds:\n- 2\n", "!!python/object/apply:os.system [ls]\n", "? [rounds]\n: 2\n",
    "seeds: 2020-01-01\n", "{}\n", "null\n", "quickdrop: {unlearn_lr: {a: 1}}\n", "quickdrop: 3\n", "",
)  # fmt: skip
"""Configuration files."""

PATIENCE = 120
"""Seconds after which a command hangs; the tiny ones here take a fraction of one."""

SERVED = ("show", "evaluate", "export", "unlearn", "relearn")
CULPRITS = ("--artifacts-dir", "RUN", "already", "not forgotten")
"""How the sentences on a federation's folder begin, and what a request is told that cannot be served."""


def cases(table: Mapping[str, Any]) -> list[Any]:
    """Parameters with their names."""
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in table.items()}
    return [pytest.param(*own, id=name) for name, own in values.items()]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail where a command hangs, e.g. on a pipe that nobody writes into."""

    def stop(*args: object) -> None:
        raise AssertionError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def call(argv: Sequence[str]) -> Ended:
    """A command on streams that encode as a terminal's do."""
    streams = [io.BytesIO(), io.BytesIO()]
    out, err = (
        io.TextIOWrapper(stream, encoding="utf-8", errors=errors, write_through=True)
        for stream, errors in zip(streams, ("strict", "backslashreplace"), strict=True)
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with at_most(PATIENCE):
            code = main(list(argv))
    return Ended(code, *(stream.getvalue().decode() for stream in streams))


Tree = dict[str, bytes | None]


def tree(root: Path) -> Tree:
    """Contents of all files by name, folders and pipes without."""
    found: Tree = {}
    for path in root.rglob("*"):
        found[str(path.relative_to(root))] = path.read_bytes() if path.is_file() else None
    return found


def restore(root: Path, before: Tree) -> None:
    for name in sorted(tree(root).keys() - before.keys(), reverse=True):
        path = root / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in before.items():
        if content is not None and (not (root / name).is_file() or (root / name).read_bytes() != content):
            (root / name).write_bytes(content)


TRACES = (".rows.lock", "rows.jsonl", ".lock", ".training.lock")
"""What a command may leave behind before it finds bad input: locks, and a file for rows that is still empty."""


def judge(ended: Ended, argv: Sequence[str], culprits: Sequence[str], codes: Sequence[int]) -> None:
    assert ended.code in codes, (argv, ended)
    assert "Traceback" not in ended.err
    if ended.code != 2:
        return
    sentences = [line for line in ended.err.split("\n") if line and not line.startswith("preset ")]
    assert len(sentences) == 1, (argv, sentences)
    assert sentences[0].startswith("quickdrop-bench: "), argv
    assert sentences[0].endswith("."), argv
    assert any(word in sentences[0] for word in culprits), (argv, culprits, sentences[0])


def check(argv: Sequence[str], culprits: Sequence[str], codes: Sequence[int] = (2,)) -> Ended:
    """Run a command in the current folder, and judge how it ended and what it left; leave the folder as it was."""
    root = Path.cwd()
    before = tree(root)
    try:
        ended = call(argv)
        after = tree(root)
    finally:
        restore(root, before)
    judge(ended, argv, culprits, codes)
    kept = {name for name in before if ended.code == 2 or name.endswith((".jsonl", ".safetensors", ".yaml", ".json"))}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}, argv
    if ended.code == 2:
        new = {name for name in after.keys() - before.keys() if after[name] is not None}
        assert all(Path(name).name in TRACES and not after[name] for name in new), (argv, new)
    return ended


BASES: dict[str, list[str]] = {
    "table": ["table", "2", *RUN],
    "figure": ["figure", "4", *RUN],
    "sweep": ["sweep", *RUN, "--dry-run"],
    "train": ["train", *TINY],
    "distribution": ["distribution", *PARTITION],
    "unlearn": ["unlearn", "@", "--class", "3", "--dry-run"],
    "relearn": ["relearn", "@", "--class", "9", "--dry-run"],
    "evaluate": ["evaluate", "@"],
    "show": ["show", "@"],
    "export": ["export", "@"],
    "report": ["report"],
    "dashboard": ["dashboard", "--output", "drawn.json", "--wandb-entity", "somebody"],
    "methods": ["methods"],
    "metrics": ["metrics"],
    "models": ["models"],
    "datasets": ["datasets"],
    "presets": ["presets"],
}


def base(command: str) -> list[str]:
    """A valid command line."""
    run = next(Path("artifacts").glob("[!.]*")).name
    return [run if part == "@" else part for part in BASES[command]]


@cache
def options(command: str) -> dict[str, str]:
    """The command's options and the kind of their values, ``None`` for flags."""
    known = [option for option in declared(command).values() if option.name.startswith("--")]
    return {o.name: "None" if o.is_flag else str(o.type) for o in known if o.name != "--publish"}  # nothing is sent


def numeric(command: str) -> list[str]:
    """Options that take one number."""
    kinds = options(command).items()
    return [n for n, kind in kinds if "str" not in kind and ("int" in kind or "float" in kind)]


def culprit(option: str) -> list[str]:
    """How a sentence may call an option: in the name of its own, or as the option that it lists values of."""
    return [option, option.rsplit(".", 1)[-1], option.removesuffix("s")]


def federation() -> Path:
    return next(Path("artifacts").glob("[!.]*"))


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """A folder that is as before after the block, whatever happens to it."""
    copy = Path(f"kept-{folder.name}")
    shutil.copytree(folder, copy, symlinks=True)
    try:
        yield folder
    finally:
        remove(folder)
        shutil.move(copy, folder)


@contextlib.contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Let this process have so many bytes more of address space; what needs more fails instead of the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
