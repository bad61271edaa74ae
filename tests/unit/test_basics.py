"""Registry, seeding, costs, rows and atomic files."""

from __future__ import annotations

import json
import math
import os
import tracemalloc
from importlib import import_module
from pathlib import Path

import pytest
import torch

from quickdrop_bench.cli.main import main
from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.registry import Registry
from quickdrop_bench.core.seeding import derive_seed, generator
from quickdrop_bench.store import rows as row_files
from quickdrop_bench.store.rows import KEY, RowFile
from tests.damage import GONE


def test_registry_names_the_option_and_the_nearest_name() -> None:
    registry = Registry[int]("--colour")
    registry.register("red")(1)
    registry.register("green")(2)
    assert (registry["red"], len(registry), "blue" in registry) == (1, 2, False)
    with pytest.raises(BadInput, match="--colour gren: did you mean green"):
        _ = registry["gren"]
    with pytest.raises(ValueError, match="registered already"):
        registry.register("red")


def test_a_registry_finds_its_modules_and_those_of_other_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look-up imports every module of its package, then the entry points of its group, once."""
    for name, text in {
        "colours/__init__.py": "from quickdrop_bench.core.registry import Registry\n"
        "COLOURS = Registry[int]('--colour', 'colours')\n",
        "colours/green.py": "from colours import COLOURS\nassert 'x' not in COLOURS\nCOLOURS.register('green')(2)\n",
        "elsewhere.py": "from colours import COLOURS\nCOLOURS.register('red')(1)\n",
        "elsewhere-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n",
        "elsewhere-1.dist-info/entry_points.txt": "[colours]\nred = elsewhere\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    colours = import_module("colours").COLOURS
    assert "green" not in colours._items
    assert [dict.fromkeys(colours), colours["red"]] == [{"green": None, "red": None}, 1]
    colours.load()
    assert len(colours) == 2


def test_a_sentence_has_one_line() -> None:
    error = BadInput("--x", "a\nb\x1b[2J\u2028\udcff ", "one of\n  two")
    assert str(error) == r"--x a\nb\x1b[2J\u2028\udcff : one of two."


def test_seeds_differ_by_purpose() -> None:
    seeds = {derive_seed(s, *p) for s in (1, 2) for p in (("a",), ("b",), ("a", 1), ("a", 2), ("a", 1, 2), ("a", 12))}
    assert len(seeds) == 12
    assert all(0 <= s < 2**63 for s in seeds)
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


def test_costs_add_up() -> None:
    total = Cost(seconds=1, rounds=2, upload_bytes=8) + Cost(seconds=0.5, rounds=1, sample_gradients=7)
    assert total == Cost(seconds=1.5, rounds=3, upload_bytes=8, sample_gradients=7)
    assert set(total.metrics()) == {"seconds", "rounds", "data_size", "sample_gradients", "upload_bytes"}
    rare = Cost(second_order_sample_gradients=2, sample_forwards=3, sample_gradients=4)
    assert rare.metrics()["sample_forwards"] == 3
    assert rare.gradient_equivalents == 7


def row(value: float, **changes: object) -> dict[str, object]:
    return {**dict.fromkeys(KEY, "x"), "clients": 3, "seed": 1, "value": value, **changes}


def test_rows_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "t" / "rows.jsonl"
    rows = RowFile(path)
    rows.check_writable()
    rows.write([row(1.0, spec_hash="a"), row(2.0, spec_hash="b")])
    with path.open("a") as file:
        file.write('{"artefact": "x", "val')
    path.write_bytes(path.read_bytes() + b"\xff\xfe")
    again = RowFile(path)
    assert [r["value"] for r in again.rows] == [1.0, 2.0]
    again.write([row(3.0, spec_hash="c")])
    assert [r["value"] for r in RowFile(path).rows] == [1.0, 2.0, 3.0]
    for line in path.read_bytes().splitlines():
        json.loads(line)


def test_a_run_is_replaced_as_a_whole(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    rows.write([row(1.0, spec_hash="a", metric="seconds"), row(5.0, spec_hash="b")])
    assert rows.measured_by("a") is None  # its last row is missing
    last = row(0.0, spec_hash="a", stage="total", metric="diverged", measured_by="accuracy@1 norm@2")
    rows.write([row(2.0, spec_hash="a"), last])
    assert [r["value"] for r in rows.of("a")] == [2.0, 0.0]
    assert rows.measured_by("a") == ["accuracy@1", "norm@2"]
    assert rows.measured_by("b") is None
    assert not rows.marked("a")
    rows.write([row(1.0, spec_hash="a", stage="total", metric="failed")])
    assert rows.marked("a")
    assert [r["value"] for r in RowFile(rows.path).rows] == [5.0, 1.0]


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    """Both opened the file while it was empty; the second replaces a run of its own."""
    first, second = (RowFile(tmp_path / "rows.jsonl") for _ in range(2))
    first.write([row(1.0, spec_hash="a")])
    second.write([row(2.0, spec_hash="b")])
    first.write([row(3.0, spec_hash="c")])
    second.write([row(4.0, spec_hash="b")])
    assert [r["value"] for r in RowFile(first.path).rows] == [1.0, 3.0, 4.0]


def test_a_file_that_could_not_be_read_is_read_before_the_next_write(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    rows.write([row(1.0, spec_hash="a")])
    rows.path.write_bytes(b"\0")
    for _ in range(2):
        with pytest.raises(BadInput, match="no UTF-8 text"):
            rows.write([row(2.0, spec_hash="b")])
    assert rows.path.read_bytes() == b"\0"


def test_a_file_is_read_again_only_if_others_have_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read_lines = row_files.read_lines
    monkeypatch.setattr(row_files, "read_lines", lambda path: reads.append(path) or read_lines(path))
    rows = RowFile(tmp_path / "rows.jsonl")
    for number in range(5):
        rows.write([row(float(number), spec_hash=str(number))])
    assert len(reads) == 1  # when it was opened
    RowFile(rows.path).write([row(9.0, spec_hash="other")])
    rows.write([row(5.0, spec_hash="5")])
    assert [r["value"] for r in rows.rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 5.0]
    rows.write([row(7.0, spec_hash="other")])
    assert [r["value"] for r in RowFile(rows.path).rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0]


def test_lines_of_other_programs_and_versions_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    strange = [
        b'{"value": 1}\n',
        b"caf\xe9\n",
        b"\n",
        b"[" * 10**5 + b"\n",
        b'{"clients": "three"}\n',
        b"x" * 2**21 + b"\n",
    ]
    rows = RowFile(path)
    rows.write([row(1.0, spec_hash="a")])
    path.write_bytes(b"".join([strange[0], path.read_bytes(), *strange[1:]]))
    before = path.read_bytes()
    RowFile(path).write([row(2.0, spec_hash="b")])
    assert path.read_bytes().startswith(before)
    RowFile(path).write([row(3.0, spec_hash="b")])
    RowFile(path).write([row(3.0, spec_hash="a")])
    assert [line for line in path.read_bytes().splitlines(keepends=True) if line in strange] == strange
    assert [r["value"] for r in RowFile(path).rows] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b'{"value": 1}', True),
        ('\ufeff{"Süd": []}'.encode(), True),
        (b'{"value": %s}' % (b"1" * 5000), True),
        (b"[" * 10**5, True),
        (b"x" * 2**20, True),
        (b"x" * 2**21, True),
        (b'{"value": 1', False),
        ('{"value": "ü'.encode()[:-1], False),
    ],
    ids=range(8),
)
def test_a_last_line_without_an_end_goes_only_where_a_kill_tore_it(tmp_path: Path, line: bytes, kept: bool) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).write([row(1.0, spec_hash="a"), row(2.0, spec_hash="b")])
    path.write_bytes(path.read_bytes() + line)
    RowFile(path).write([row(3.0, spec_hash="a")])
    lines = path.read_bytes().splitlines(keepends=True)
    assert [json.loads(lines[k])["value"] for k in (0, -1)] == [2.0, 3.0]
    assert lines[1:-1] == [line + b"\n"] * kept


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_row_file_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).write([row(1.0, spec_hash="a")])
    path.write_text(path.read_text(), encoding=encoding)
    with pytest.raises(BadInput, match=r"--results-dir .*rows.jsonl cannot be read \(it is no UTF-8 text"):
        RowFile(path)


@pytest.mark.parametrize("column", ["scale", "fine_tuning", "round"])
@pytest.mark.parametrize("value", [math.inf, math.nan, True, "3"])
def test_what_is_counted_is_a_finite_number_or_the_line_is_no_row(tmp_path: Path, column: str, value: object) -> None:
    lines = [row(1.0, spec_hash="a", **{column: value}), row(math.inf, spec_hash="b", **{column: 3})]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = RowFile(tmp_path / "rows.jsonl")
    assert [r["spec_hash"] for r in rows.rows] == ["b"]
    rows.write([row(2.0, spec_hash="c")])
    assert len(rows.path.read_text().splitlines()) == 3  # what is no row is kept


def test_a_giant_line_and_many_columns_cost_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).write([row(1.0, spec_hash="a")])
    with path.open("ab") as file:
        file.write(json.dumps(row(1.0, **{f"column{k}": k for k in range(10**4)})).encode() + b"\n")
        file.truncate(path.stat().st_size + 2**28)  # zeros without end
    tracemalloc.start()
    assert [r["value"] for r in RowFile(path).rows] == [1.0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_what_a_killed_writer_of_rows_left_is_swept(tmp_path: Path) -> None:
    kept = {"mine.tmp.txt", ".mine.tmp.txt", ".tmpA1b2C3", f".table.md.{os.getppid()}.tmp.abc"}
    for name in (f".rows.jsonl.{GONE}.tmp.abc", f".table.md.{os.getpid()}.tmp.abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".new").touch()
    for name in (f".rows.{GONE}.tmp.jsonl", *kept):  # one file of an earlier version
        (tmp_path / name).touch()
    RowFile(tmp_path / "rows.jsonl").check_writable()
    assert {path.name for path in tmp_path.iterdir()} <= {*kept, "rows.jsonl", ".rows.lock"}


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_said_wherever_it_shows(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: object) -> int:
        raise error

    monkeypatch.setattr("quickdrop_bench.cli.main._run", run)
    assert main(["methods"]) == 1
    assert capsys.readouterr().err.startswith("quickdrop-bench: there is not enough memory")
    error = ImportError("no such library")
    with pytest.raises(ImportError):
        main(["methods"])
