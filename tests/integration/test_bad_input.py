"""Generated bad input: one sentence that names the culprit, exit code 2, nothing lost; never a traceback."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from quickdrop_bench.cli import main
from quickdrop_bench.harness.training import client_rows
from quickdrop_bench.parsing import COMMANDS, Parser
from quickdrop_bench.rows import KEY
from tests.conftest import TINY

pytestmark = pytest.mark.slow

RUN = [*TINY, "--methods", "quickdrop"]
JUNK = (
    "nan", "inf", "-inf", "-1", "0", "1e400", "-5.5", "", " ", "abc", "ü☃", "[1,2]", "{a: 1}", "null", "true", "[/x]",
    "1,2", "1,,2", ",", "--", "\x1b[2J", "$x^", "*a", "&a b", "1_0", "0x10", "!!python/name:os.system", "a/../b",
    "\udcff",
)  # fmt: skip
NO_NUMBER = ("abc", "", "1,2", "ü☃", "[1,2]", "{a: 1}", "nan", "-inf", "inf", "-1", "1e400", "1e", "--3", "½")
IRRELEVANT = "--fine-tune-"
"""Options that are not looked at unless another one is set."""

PATIENCE = 30
"""Seconds after which a command hangs; the tiny ones here take a fraction of one."""

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


TRACES = (".rows.lock", "rows.jsonl", ".lock")
"""What a command may leave behind before it finds bad input: a lock, and a file for rows that is still empty."""


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


def until_training(session: Any, *args: Any, **options: Any) -> bool:
    """Everything that a measurement does before it computes."""
    spec = session.experiment.federation
    _ = session.federation
    client_rows(spec, session.data.train.labels, session.experiment.seeds[0])
    return True


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained federation, its results, an image folder and a configuration."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        assert call(["table", "2", *RUN]).code == 0
        assert call(["unlearn", next(Path("artifacts").iterdir()).name, "--class", "9"]).code == 0
        (root / "mine.yaml").write_text("rounds: 2\n")
        make_pictures(root / "pics")
        yield root


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside that folder."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home


@pytest.fixture
def idle(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside that folder, where nothing is trained."""
    monkeypatch.setattr("quickdrop_bench.produce.measure", until_training)
    monkeypatch.setattr("quickdrop_bench.cli._train", until_training)
    return at_home


def make_pictures(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")


# 1. The command line -----------------------------------------------------------------------------------------

BASES: dict[str, list[str]] = {
    "table": ["table", "2", *RUN],
    "figure": ["figure", "4", *RUN],
    "sweep": ["sweep", *RUN, "--dry-run"],
    "train": ["train", *TINY],
    "distribution": ["distribution", *TINY],
    "unlearn": ["unlearn", "@", "--class", "3", "--dry-run"],
    "relearn": ["relearn", "@", "--class", "9", "--dry-run"],
    "evaluate": ["evaluate", "@"],
    "show": ["show", "@"],
    "export": ["export", "@"],
    "report": ["report"],
    "methods": ["methods"],
    "datasets": ["datasets"],
    "presets": ["presets"],
}
LIGHT = sorted(BASES.keys() - {"table", "figure", "sweep", "report"})
COMMAND = st.sampled_from([*LIGHT, *LIGHT, "table", "figure", "sweep"])
"""Commands whose options take long to build come up less often."""


def base(command: str) -> list[str]:
    """A valid command line."""
    run = next(Path("artifacts").iterdir()).name
    return [run if part == "@" else part for part in BASES[command]]


@cache
def options(command: str) -> dict[str, str]:
    """The command's options and the kind of their values, ``None`` for flags."""
    parser = Parser()
    COMMANDS[command](parser)
    skipped = {"-h", "--help", "--config", "--print_config"}
    actions = {a.option_strings[0]: a for a in parser._actions if a.option_strings}
    return {
        name: "None" if action.nargs == 0 else str(action._typehint)
        for name, action in actions.items()
        if name not in skipped
    }


def numeric(command: str) -> list[str]:
    """Options that take one number."""
    kinds = options(command).items()
    return [n for n, kind in kinds if "str" not in kind and ("int" in kind or "float" in kind) and IRRELEVANT not in n]


def culprit(option: str) -> list[str]:
    """How a sentence may call an option: in the name of its own, or as the option that it lists values of."""
    return [option, option.rsplit(".", 1)[-1], option.removesuffix("s")]


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
        if multiline(argv):
            return
        check([*base(command), *argv], [*named, "unrecognized", "expected", "RUN"], codes=(0, 2))

    holds()


def multiline(argv: Sequence[str]) -> bool:
    """Whether a sentence that repeats a value would have several lines."""
    return any(len(part.splitlines()) > 1 or part.strip() != part for part in argv)


@st.composite
def malformed(draw: st.DrawFn) -> list[str]:
    """A command line that no parser accepts."""
    command = draw(COMMAND)
    known = sorted(options(command))
    word = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0="), min_size=1, max_size=8).map(str.strip))
    valued = [name for name in known if options(command)[name] != "None"]
    kinds: list[st.SearchStrategy[list[str]]] = [
        st.just([f"{command}{word}x"]),
        st.just([*BASES[command], f"--{word}nope"]),
        st.just([*BASES[command], f"--no-such-{word}=1"]),
        st.just([*BASES[command], "more", f"{word}words"]),
        st.just([]),
    ]
    if valued:
        option = draw(st.sampled_from(valued))
        kinds += [st.just([*BASES[command], option]), st.just([*BASES[command], f"{option[:-1]}", "1"])]
    return draw(st.one_of(kinds))


@sizes(60, 600)
def test_malformed_command_lines_are_refused(idle: Path, count: int) -> None:
    run = next(Path("artifacts").iterdir()).name

    @examples(count, argv=malformed())
    def holds(argv: list[str]) -> None:
        line = [run if part == "@" else part for part in argv]
        if not multiline(line) and not any(known.startswith(line[-2]) for known in ("--help",) if len(line) > 1):
            check(line, ["command", "expected", "--"])

    holds()


# 2. Configuration files --------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 100)
    | st.floats()
    | st.sampled_from(JUNK[:-1])
    | st.text(max_size=5)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TEXTS = (
    "a: &a [1]\nrounds: *a\n", "rounds: &a 2\nclients: *a\n", "<<: {rounds: 2}\n", "rounds: 2\n---\nrounds: 3\n",
    "- 1\n",     "a: [1, {\n", "rounds: 2\nrounds: x\n", "\trounds: 2\n",
    "rounds:\n- 2\n", "!!python/object/apply:os.system [ls]\n",
    "%YAML 9.9\n---\nrounds: 2\n", "? [rounds]\n: 2\n", "rounds: !!binary AA==\n", "seeds: 2020-01-01\n", "{}\n",
    "null\n",     "rounds: *nothing\n", "quickdrop: {unlearn_lr: {a: 1}}\n", "quickdrop: 3\n", "quickdrop: {nope: 1}\n",
    "",
)  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, bytes]:
    """A command, and what its configuration file holds."""
    command = draw(st.sampled_from(["distribution", "distribution", "train", "table", "sweep"]))
    keys = [name.strip("-").replace("-", "_") for name in options(command) if "." not in name]
    # Folders are the user's to choose, and more than tiny federations take long.
    keys = [key for key in keys if not key.endswith("dir") and not key.startswith("image_steps")]
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


@pytest.mark.parametrize("path", ["pics", "none.yaml", "", "/dev/null", "mine.yaml/x", "a" * 300])
@pytest.mark.parametrize("command", ["distribution", "table"])
def test_what_is_no_configuration_file_is_refused(idle: Path, command: str, path: str) -> None:
    check([*base(command), "--config", path], ["--config"])


# 3. Artifacts ------------------------------------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Make the manifest fit whatever the files have become, as anybody can who writes into the folder."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for name, entry in manifest["files"].items():
            content = (folder / name).read_bytes()
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return
    (folder / "manifest.json").write_text(json.dumps(manifest))


Damage = Callable[[Path], object]
NUMBERS = st.sampled_from([0.0, -1.0, 1e30, math.nan, math.inf, 2.0**62, -(2.0**62), 0.5])


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """What may happen to one file of a folder."""
    position, byte = draw(st.floats(0, 0.999)), draw(st.integers(1, 255))
    value, name, text = draw(NUMBERS), draw(st.integers(0, 99)), draw(st.sampled_from([*JUNK[:-1], "x" * 3000]))
    tree_, content = draw(TREES), draw(st.binary(max_size=64))

    def some(paths: Sequence[Path]) -> Path:
        return sorted(paths)[name % len(paths)]

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[int(position * len(data))] ^= byte
        path.write_bytes(data)

    def into_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def into_link(path: Path) -> None:
        path.unlink()
        path.symlink_to(["nothing", path.name, "/dev/zero", "../../mine.yaml"][byte % 4])

    def into_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def edit_header(path: Path) -> None:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        entry = header[sorted(header)[byte % len(header)]]
        if isinstance(entry, dict):
            entry[["dtype", "shape", "data_offsets"][name % 3]] = tree_
        new = json.dumps(header).encode()
        path.write_bytes((len(new) if byte % 5 else 2**40).to_bytes(8, "little") + new + data[8 + size :])

    def edit_tensor(path: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
        key = sorted(tensors)[byte % len(tensors)]
        flat = tensors[key].view(-1)
        if len(flat):
            exact = flat.is_floating_point() or math.isfinite(value)
            flat[int(position * len(flat))] = value if exact else 7
        if byte % 7 == 0:
            tensors[key] = tensors[key][1:].contiguous() if tensors[key].dim() else tensors[key].float()
        save_file(tensors, path)

    def edit_text(path: Path) -> None:
        lines = path.read_text().split("\n")
        lines[int(position * len(lines))] = text if byte % 2 else lines[0] + text
        path.write_text("\n".join(lines), errors="replace")

    def edit_manifest(path: Path) -> None:
        values = json.loads(path.read_bytes())
        inner = values
        for _ in range(byte % 3):
            keys = sorted(k for k, v in inner.items() if isinstance(v, dict) and v)
            if keys:
                inner = inner[keys[name % len(keys)]]
        key = sorted(inner)[int(position * len(inner))]
        if byte % 4 == 0:
            inner[text] = inner.pop(key)
        elif byte % 4 == 1:
            del inner[key]
        else:
            inner[key] = value if byte % 4 == 2 else tree_
        path.write_text(json.dumps(values))

    def swap(path: Path) -> None:
        other = some([p for p in path.parent.iterdir() if p.is_file() and p.stat().st_size < 2**24])
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)

    def anywhere(folder: Path, files: Mapping[str, Sequence[Path]], kind: Callable[[Path], object], of: str) -> None:
        if files[of]:
            kind(some(files[of]))

    any_file = [flip, lambda p: os.truncate(p, int(position * p.stat().st_size)), Path.unlink, into_folder, into_link]
    any_file += [into_pipe, swap, lambda p: p.write_bytes(content), lambda p: os.truncate(p, 2**33)]
    kind, of = draw(
        st.sampled_from(
            [(k, "all") for k in any_file]
            + [(edit_header, "tensors"), (edit_tensor, "tensors"), (edit_tensor, "tensors"), (edit_text, "texts")]
            + [
                (edit_text, "texts"),
                (edit_manifest, "manifest"),
                (edit_manifest, "manifest"),
                (edit_manifest, "manifest"),
            ]
        )
    )

    def damage(folder: Path) -> None:
        # What another damage made huge is left alone: these functions read whole files.
        small = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size < 2**24]
        files = {
            "all": [p for p in small if p.suffix in (".safetensors", ".json", ".csv", ".yaml")],
            "tensors": [p for p in small if p.suffix == ".safetensors"],
            "texts": [p for p in small if p.name in ("history.csv", "config.yaml")],
            "manifest": [p for p in small if p.name == "manifest.json"],
        }
        with contextlib.suppress(Exception):  # the second damage meets what the first one left
            anywhere(folder, files, kind, of)

    damage.__name__ = getattr(kind, "__name__", "change")
    return damage


def safe_to_read(folder: Path) -> bool:
    """A file that is read as a whole to seal it must not be endless."""
    return all(p.is_file() and p.stat().st_size < 2**30 for p in folder.rglob("*") if not p.is_dir())


SERVED = ("show", "evaluate", "export", "unlearn", "relearn")


@sizes(130, 2000)
def test_damaged_artifacts_are_refused_by_file_or_still_valid(at_home: Path, count: int) -> None:
    original = next(Path("artifacts").iterdir())

    @examples(
        count,
        command=st.sampled_from([*SERVED, *SERVED, "train", "table"]),
        several=st.lists(damages(), min_size=1, max_size=2),
        sealed=st.booleans(),
    )
    def holds(command: str, several: list[Damage], sealed: bool) -> None:
        argv = base(command)
        before = tree(original)
        shutil.copytree(original, "kept", symlinks=True)
        try:
            for damage in several:
                damage(original)
            if sealed and safe_to_read(original):
                seal(original)
            ended = call(argv)
        finally:
            shutil.rmtree(original)
            shutil.move("kept", original)
        judge(ended, [*argv, *(d.__name__ for d in several)], CULPRITS, codes=(0, 2))
        assert tree(original) == before

    holds()


CULPRITS = ("--artifacts-dir", "RUN", "already", "not forgotten")
"""How the sentences on a federation's folder begin, and what a request is told that cannot be served."""


# 4. Image folders --------------------------------------------------------------------------------------------


@st.composite
def picture_damages(draw: st.DrawFn) -> Damage:
    """What may happen to an image folder."""
    number, content = draw(st.integers(0, 99)), draw(st.binary(max_size=80))
    position, byte = draw(st.floats(0, 0.999)), draw(st.integers(1, 255))
    text = draw(st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=8))
    side = draw(st.sampled_from([1, 3, 9, 2000]))
    suffix = draw(st.sampled_from([".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".txt"]))

    def image(root: Path) -> Path:
        found = sorted(p for p in root.rglob("*.png") if p.is_file() and not p.is_symlink())
        return found[number % len(found)]

    def flip(root: Path) -> None:
        path = image(root)
        data = bytearray(path.read_bytes())
        data[int(position * len(data))] ^= byte
        path.write_bytes(data)

    def header(root: Path) -> None:
        data = bytearray(image(root).read_bytes())
        data[16:24] = (100_000).to_bytes(4, "big") * 2
        image(root).write_bytes(data)

    def other_format(root: Path) -> None:
        path = image(root)
        Image.new(["1", "L", "P", "RGB"][byte % 4], (side, side)).save(path.with_suffix(".gif"))
        path.with_suffix(".gif").replace(path)

    def link(root: Path) -> None:
        path = image(root)
        path.unlink()
        path.symlink_to(["nothing", path.name, "/dev/zero", "..", "/"][byte % 5])

    def pipe(root: Path) -> None:
        path = image(root)
        path.unlink()
        os.mkfifo(path)

    def class_link(root: Path) -> None:
        (root / ["train", "test"][byte % 2] / "c").symlink_to(["nothing", "c", "..", "a", "/", "../.."][number % 6])

    def add(root: Path) -> None:
        (image(root).parent / f"{text}{suffix}").write_bytes(content)

    def rename_class(root: Path) -> None:
        for split in ["train", "test"][: 1 + byte % 2]:
            (root / split / "b").rename(root / split / text)

    def empty_class(root: Path) -> None:
        for path in (root / "train" / "a").iterdir():
            path.unlink()

    def cut(root: Path) -> None:
        os.truncate(image(root), int(position * image(root).stat().st_size))

    def move(root: Path) -> None:
        shutil.move(image(root), root / "train" / f"{text}.png")

    def make_file(root: Path) -> None:
        part = root / ["train", "test", "train/a", "."][number % 4]
        shutil.rmtree(part)
        part.write_bytes(content)

    def new_class(root: Path) -> None:
        (root / "train" / text).mkdir()

    def grow(root: Path) -> None:
        os.truncate(image(root), 2**33)

    kinds = [flip, header, other_format, link, pipe, class_link, add, rename_class, empty_class, cut, move, make_file]
    kind = draw(st.sampled_from([*kinds, new_class, grow]))

    def damage(root: Path) -> None:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # a name that no file can have
            kind(root)

    damage.__name__ = kind.__name__
    return damage


PICTURES = ["--dataset", "imagefolder", "--data-dir", "damaged", "--min-client-size", "0"]


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
            ended = call(["distribution", *TINY, *PICTURES, *size, "--results-dir", "drawn"])
        finally:
            remove(Path("damaged"))
            shutil.rmtree("drawn", ignore_errors=True)
        judge(
            ended, [d.__name__ for d in several], ["--data-dir", "--image-size", "--clients", "--alpha"], codes=(0, 2)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quickdrop_bench.cli.write_distribution", lambda *args: [])
        holds()


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


# 5. Results folders ------------------------------------------------------------------------------------------

COLUMNS = (*KEY, "value", "device", "patience", "federation_hash", "protocol", "phase", "round", "scale", "created_at")


@st.composite
def result_damages(draw: st.DrawFn) -> Damage:
    """What may happen to the rows of a results folder."""
    line, column, value = draw(st.integers(0, 10**4)), draw(st.sampled_from(COLUMNS)), draw(TREES)
    content, position = draw(st.binary(max_size=60)), draw(st.floats(0, 0.999))
    everywhere = draw(st.booleans())

    def insert(path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        lines.insert(line % len(lines), content)
        path.write_bytes(b"\n".join(lines))

    def edit(path: Path) -> None:
        lines = path.read_text(errors="replace").splitlines()
        for k, text in enumerate(lines):
            if everywhere or k == line % len(lines):
                with contextlib.suppress(ValueError, TypeError):
                    lines[k] = json.dumps({**json.loads(text), column: value})
        path.write_text("\n".join(lines) + "\n")

    def drop(path: Path) -> None:
        lines = path.read_text(errors="replace").splitlines()
        with contextlib.suppress(ValueError, TypeError, KeyError):
            row = json.loads(lines[line % len(lines)])
            del row[column]
            lines[line % len(lines)] = json.dumps(row)
        path.write_text("\n".join(lines))

    def cut(path: Path) -> None:
        os.truncate(path, int(position * path.stat().st_size))

    def nest(path: Path) -> None:
        path.write_bytes(path.read_bytes() + b"[" * 10**5 + b"\n")

    def into_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def binary(path: Path) -> None:
        path.write_bytes(content)

    kind = draw(st.sampled_from([insert, edit, edit, edit, drop, cut, nest, into_folder, binary]))

    def damage(path: Path) -> None:
        if path.is_file():
            kind(path)

    damage.__name__ = f"{kind.__name__} {column} {value!r} {everywhere}"
    return damage


@sizes(60, 900)
def test_any_rows_are_read_or_refused(idle: Path, count: int) -> None:
    rows = Path("results/quick/table2/rows.jsonl")
    original = rows.read_bytes()

    @examples(count, command=st.sampled_from(["table", "sweep", "report"]), damage=result_damages())
    def holds(command: str, damage: Damage) -> None:
        damage(rows)
        try:
            check(base(command), ["--results-dir"], codes=(0, 2))
        finally:
            remove(rows)
            rows.write_bytes(original)

    holds()
