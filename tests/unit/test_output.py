"""What cannot be shown or written on standard output ends no work that is done."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quickdrop_bench.cli.main import main
from quickdrop_bench.serving import TrainedRun
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # a process each


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, "--artifacts-dir", str(place)]) == 0
    (folder,) = place.glob("[!.]*")
    return folder


def started(argv: list[str], output: Path, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", **more}
    program = [sys.executable, "-m", "quickdrop_bench", *argv]
    with output.open("wb") as stream:
        return subprocess.run(program, env=variables, text=True, stdout=stream, stderr=subprocess.PIPE, timeout=300)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_narrow_encodings_show_escapes(encoding: str, trained: Path, tmp_path: Path) -> None:
    done = started(["show", str(trained)], tmp_path / "said", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "said").read_bytes().decode(encoding).startswith(str(trained))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_requests_are_served_all_the_same(trained: Path) -> None:
    before = TrainedRun(trained).current
    done = started(["unlearn", str(trained), "--class", "9,3"], Path("/dev/full"))
    assert TrainedRun(trained).current == before + 2
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line == (
        "quickdrop-bench: the request was served, and standard output cannot be written (No space left on device)"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_an_answer_that_nobody_gets_is_a_failure(trained: Path) -> None:
    done = started(["show", str(trained)], Path("/dev/full"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="needs a shell")
def test_a_reader_that_has_enough_is_no_failure(tmp_path: Path) -> None:
    script = f'("{sys.executable}" -m quickdrop_bench presets; echo $? > code) | true'
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", script], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    while not (tmp_path / "code").exists() or not (tmp_path / "code").read_text():
        time.sleep(0.1)
    assert ((tmp_path / "code").read_text(), done.stderr) == ("0\n", "")


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_a_terminal_without_a_width_gets_an_answer(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["models"]) == 0
    assert "convnet" in capsys.readouterr().out


def test_a_dry_run_that_nobody_reads_served_nothing(trained: Path) -> None:
    done = started(["unlearn", str(trained), "--class", "5", "--dry-run"], Path("/dev/full"))
    assert (done.returncode, "served" in done.stderr) == (1, False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", ">/dev/full 2>&1"])
def test_streams_that_are_closed_end_no_work(closed: str, tmp_path: Path) -> None:
    argv = ["-m", "quickdrop_bench", "table", "2", *TINY, "--methods", "none", "--results-dir", "r"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"exec {shlex.join([sys.executable, *argv])} {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=variables, timeout=300)
    assert done.returncode == 0
    assert "Original model" in (tmp_path / "r/quick/table2/table.md").read_text()
