"""Generated bad input: one sentence that names the culprit, exit code 2, nothing lost; never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quickdrop_bench.cli import main
from quickdrop_bench.harness.training import client_rows
from quickdrop_bench.parsing import COMMANDS, Parser
from tests.conftest import PARTITION, TINY
from tests.damage import JUNK, TREES, Damage, artifact_damages, make_pictures, picture_damages, result_damages, seal

pytestmark = pytest.mark.slow

RUN = [*TINY, "--methods", "quickdrop"]
NO_NUMBER = ("abc", "", "1,2", "ü☃", "[1,2]", "{a: 1}", "nan", "-inf", "inf", "-1", "1e400", "1e", "--3", "½")
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


def cases(table: Mapping[str, Any]) -> list[Any]:
    """Parameters with their names."""
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in table.items()}
    return [pytest.param(*own, id=name) for name, own in values.items()]


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


# 1. The command line -----------------------------------------------------------------------------------------

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
    skipped = {"-h", "--help", "--config", "--print_config", "--publish"}  # nothing is sent anywhere
    actions = {a.option_strings[0]: a for a in parser._actions if a.option_strings}
    return {
        name: "None" if action.nargs == 0 else str(action._typehint)
        for name, action in actions.items()
        if name not in skipped
    }


def numeric(command: str) -> list[str]:
    """Options that take one number."""
    kinds = options(command).items()
    return [n for n, kind in kinds if "str" not in kind and ("int" in kind or "float" in kind)]


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


# 2. Configuration files --------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("path", ["pics", "none.yaml", "", "/dev/null", "mine.yaml/x", "a" * 300])
@pytest.mark.parametrize("command", ["distribution", "table"])
def test_what_is_no_configuration_file_is_refused(idle: Path, command: str, path: str) -> None:
    check([*base(command), "--config", path], ["--config"])


@pytest.mark.parametrize("key", ["alpha", "clients", "record_every", "participation", "dataset", "norm"])
def test_nothing_in_the_place_of_a_value_is_refused(idle: Path, key: str) -> None:
    Path("null.yaml").write_text(f"{key}: null\n")
    check([*base("distribution"), "--config", "null.yaml"], [f"--{key.replace('_', '-')}", key])


# 3. Artifacts ------------------------------------------------------------------------------------------------

SERVED = ("show", "evaluate", "export", "unlearn", "relearn")
CULPRITS = ("--artifacts-dir", "RUN", "already", "not forgotten")
"""How the sentences on a federation's folder begin, and what a request is told that cannot be served."""


def federation() -> Path:
    return next(Path("artifacts").iterdir())


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """A folder that is as before after the block, whatever happens to it."""
    copy = Path(f"kept-{folder.name}")
    shutil.copytree(folder, copy, symlinks=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        shutil.move(copy, folder)


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


SPECS: dict[str, dict[str, object]] = {
    "another number of clients": {"clients": 4},
    "clients in words": {"clients": "three"},
    "seed in words": {"seed": "one"},
    "width in words": {"width": "four"},
    "width out of range": {"width": 0},
    "width of another model": {"width": 8},
    "width that is not whole": {"width": 2.5},
    "depth of another model": {"depth": 1},
    "rounds missing": {"rounds": None},
    "rate in words": {"lr": "small"},
    "rate out of range": {"lr": -1},
    "data set that is a number": {"dataset": 3},
    "data set unknown": {"dataset": "mnits"},
    "scale missing": {"scale": None},
    "image size in words": {"image_size": "large"},
    "unknown normalisation": {"norm": "batch"},
    "momentum out of range": {"image_momentum": 5},
}


@pytest.mark.parametrize("change", cases(SPECS))
def test_specs_of_another_kind_are_refused(at_home: Path, change: Mapping[str, object]) -> None:
    with kept(federation()) as folder:
        spec = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**spec, **change}))
        seal(folder)
        for command in ("evaluate", "unlearn"):
            judge(call(base(command)), [command], ("config.yaml", "global.safetensors"), codes=(2,))


def test_a_spec_without_seed_is_refused(at_home: Path) -> None:
    with kept(federation()) as folder:
        spec = yaml.safe_load((folder / "config.yaml").read_text())
        del spec["seed"]
        (folder / "config.yaml").write_text(yaml.safe_dump(spec))
        seal(folder)
        judge(call(base("unlearn")), ["unlearn"], ["config.yaml"], codes=(2,))


def test_another_federation_in_its_place_is_refused(at_home: Path) -> None:
    assert call([*base("train"), "--width", "8"]).code == 0
    own, other = sorted(Path("artifacts").iterdir(), key=lambda path: len((path / "config.yaml").read_text()))
    wide = own if "width: 8" in (own / "config.yaml").read_text() else other
    narrow = other if wide == own else own
    try:
        with kept(narrow):
            shutil.rmtree(narrow)
            shutil.copytree(wide, narrow)
            judge(call(base("train")), ["train"], ["--artifacts-dir"], codes=(2,))
    finally:
        shutil.rmtree(wide)


@pytest.mark.parametrize("damage", ["pipe", "huge", "link"])
def test_versions_are_read_within_bounds(at_home: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setitem(globals(), "PATIENCE", 2)
    with kept(federation()) as folder:
        path = folder / "versions" / "0001.safetensors"
        path.unlink()
        if damage == "pipe":
            os.mkfifo(path)
        elif damage == "huge":
            with path.open("wb") as file:
                file.truncate(2**40)
        else:
            path.symlink_to("/dev/zero")
        with bounded_memory(2**28):
            judge(call(base("evaluate")), [damage], ["versions/0001.safetensors"], codes=(2,))


UPDATES: dict[str, Callable[[Path], object]] = {
    "of another shape": lambda path: change(path, lambda value: value[:1]),
    "of no client's images": lambda path: save_file({**load_file(path), "num_examples": torch.tensor(-1)}, path),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


def change(path: Path, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(path)
    save_file({n: how(v).contiguous() if v.dim() else v for n, v in tensors.items()}, path)


@pytest.fixture(scope="module")
def recorded(home: Path) -> Path:
    """A folder with a federation that kept its updates, and one that was fine-tuned from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        tuned = ["--fine-tune", "1", "--fine-tune-steps", "1", "--fine-tune-epochs", "0"]
        assert call(["train", *TINY, "--record-every", "1", "--artifacts-dir", "recorded", *tuned]).code == 0
    return home / "recorded"


@pytest.mark.parametrize("damage", cases(UPDATES))
@pytest.mark.parametrize("tuned", [False, True])
def test_damaged_updates_are_refused_by_file(at_home: Path, recorded: Path, *, damage: Any, tuned: bool) -> None:
    folders = {(path / "updates").is_dir(): path for path in recorded.iterdir()}
    base, asked = folders[True], folders[not tuned]
    argv = ["unlearn", str(asked), "--class", "3", "--method", "federaser"]
    with kept(base), kept(asked) if tuned else contextlib.nullcontext():
        damage(min((base / "updates" / "0000").glob("*.safetensors")))
        seal(base)
        judge(call(argv), argv, ["updates/0000/0000.safetensors", "updates is missing or damaged"], codes=(2,))


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


def zeros_for(names: Sequence[str], shape: Sequence[int]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(*shape) for name in names}


CHECKPOINTS: dict[str, Callable[[Path, Mapping[str, torch.Tensor]], object]] = {
    "nothing": lambda path, state: path.write_bytes(b""),
    "no checkpoint": lambda path, state: path.write_bytes(b"\xff" * 50),
    "a pickle that runs something": lambda path, state: path.write_bytes(pickle.dumps(os.getcwd)),
    "a list": lambda path, state: torch.save([1], path),
    "a tensor": lambda path, state: torch.save(torch.zeros(3), path),
    "no synthetic sets": lambda path, state: torch.save({"synthetic": None}, path),
    "no parameters": lambda path, state: torch.save(
        {"synthetic": {}, "state": {}, "cost": {"rounds": 1}, "history": [{}]}, path
    ),
    "parameters of another shape": lambda path, state: torch.save(
        {"synthetic": {}, "state": zeros_for(list(state), [1]), "cost": {"rounds": 1}, "history": [{}]}, path
    ),
    "rounds in words": lambda path, state: torch.save(
        {"synthetic": {}, "state": dict(state), "cost": {"rounds": "x"}, "history": []}, path
    ),
    "history in words": lambda path, state: torch.save(
        {"synthetic": {}, "state": dict(state), "cost": {"rounds": 1}, "history": "x"}, path
    ),
    "more rounds than there are": lambda path, state: torch.save(
        {"synthetic": {}, "state": dict(state), "cost": {"rounds": 99}, "history": []}, path
    ),
}


@pytest.mark.parametrize("write", cases(CHECKPOINTS))
def test_a_checkpoint_that_is_none_is_left_alone(at_home: Path, write: Any, caplog: pytest.LogCaptureFixture) -> None:
    with kept(federation()) as folder:
        state = load_file(folder / "global.safetensors")
        shutil.rmtree(folder)
        folder.mkdir()
        write(folder / "training.ckpt", state)
        ended = call(base("train"))
        again = load_file(folder / "global.safetensors") if ended.code == 0 else {}
    assert ended.code == 0, ended.err
    assert "training.ckpt cannot be used" in caplog.text
    assert all(torch.equal(again[name], value) for name, value in state.items())


# 4. Image folders --------------------------------------------------------------------------------------------


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
            ended = call(["distribution", *PARTITION, *PICTURES, *size, "--results-dir", "drawn"])
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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


# 5. Results folders ------------------------------------------------------------------------------------------


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


KINDS = {
    "method missing": ("method", None),
    "data set that is no text": ("dataset", False),
    "stage that is a number": ("stage", 3),
    "metric that is a number": ("metric", 0.5),
    "seed in words": ("seed", "one"),
    "clients in words": ("clients", "many"),
    "request missing": ("request", None),
    "distribution that is a number": ("distribution", 1),
    "spec hash that is a number": ("spec_hash", 7),
    "value in words": ("value", "high"),
}


ROWS = {
    f"{name}, {'everywhere' if all_ else 'once'}": (*kind, all_)
    for name, kind in KINDS.items()
    for all_ in (False, True)
}


@pytest.mark.parametrize(("column", "value", "everywhere"), cases(ROWS))
def test_rows_of_another_kind_are_left_out(idle: Path, column: str, value: object, everywhere: bool) -> None:
    rows = Path("results/quick/table2/rows.jsonl")
    lines = rows.read_text().splitlines()
    original = list(lines)
    for k, line in enumerate(lines):
        if everywhere or k == len(lines) - 1:
            lines[k] = json.dumps({**json.loads(line), column: value})
    rows.write_text("\n".join(lines) + "\n")
    try:
        for command in ("table", "sweep", "report"):
            check(base(command), ["--results-dir"], codes=(0, 2))
    finally:
        rows.write_text("\n".join(original) + "\n")


# 6. Single cases ---------------------------------------------------------------------------------------------

LONG = "a" * 3000
SINGLE: dict[str, tuple[str, list[str], str]] = {
    "seed beyond 64 bits": ("train", ["--seeds", "99999999999999999999,"], "--seeds"),
    "a file that names another": ("distribution", ["--config", "other.yaml"], "--config"),
    "a flag that is no truth value": ("distribution", ["--config", "flag.yaml"], "--iid 3"),
    "a pipe to be replaced": ("export", ["--output", "pipe"], "--output pipe"),
    "a pipe to be replaced by a report": ("report", ["--output", "pipe"], "--output pipe"),
    "a pipe to be replaced by a dashboard": ("dashboard", ["--output", "pipe", "--wandb-entity", "x"], "--output pipe"),
    "a dashboard of nobody": ("dashboard", ["--wandb-entity", ""], "--wandb-entity"),
    "long data set": ("distribution", ["--dataset", LONG], "--dataset"),
    "long results folder of a report": ("report", ["--results-dir", LONG], "--results-dir"),
    "long results folder of a table": ("table", ["--results-dir", LONG], "--results-dir"),
    "long artifacts folder": ("show", ["--artifacts-dir", LONG], "--artifacts-dir"),
    "value of two lines": ("distribution", ["--dataset", "a\nb"], "--dataset"),
    "fine-tuning out of range": ("train", ["--fine-tune-steps", "-1"], "--fine-tune-steps"),
    "unknown method of a request": ("unlearn", ["--method", "nope"], "--method nope"),
    "name of the output": ("export", ["--output", ""], "--output"),
    "output in a folder that is a file": ("report", ["--output", "mine.yaml/x.html"], "--output"),
}


@pytest.mark.parametrize(("command", "argv", "named"), cases(SINGLE))
def test_single_cases_are_refused_at_once(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, command: str, argv: list[str], named: str
) -> None:
    monkeypatch.setitem(globals(), "PATIENCE", 2)
    files = {"other": "config: mine.yaml\n", "flag": "iid: 3\n"}
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    os.mkfifo("pipe")
    try:
        with bounded_memory(2**28):
            check([*base(command), *argv], [named])
        assert Path("pipe").is_fifo()
    finally:
        Path("pipe").unlink()
