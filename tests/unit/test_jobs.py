"""Processes, a few at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quickdrop_bench.core.processes import die_with_parent, run_processes


def leave(code: int, path: str = "") -> None:
    die_with_parent()
    if path:
        Path(path).write_text(str(os.getpid()))
        time.sleep(60)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
    except FileNotFoundError:
        return False


def wait_for(path: Path) -> int:
    for _ in range(300):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


def ends(pid: int) -> bool:
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_every_call_ends_with_its_own_code() -> None:
    codes = dict(run_processes(leave, [(0,), (3,), (-signal.SIGKILL,), (0,)], jobs=2))
    assert codes == {0: 0, 1: 3, 2: -9, 3: 0}


@pytest.mark.slow
def test_who_stops_listening_ends_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    calls = run_processes(leave, [(0,), (0, str(path))], jobs=2)
    next(calls)
    pid = wait_for(path)
    calls.close()  # type: ignore[attr-defined]
    assert ends(pid)


@pytest.mark.slow
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    script = tmp_path / "parent.py"
    script.write_text(
        "from quickdrop_bench.core.processes import run_processes\n"
        "from tests.unit.test_jobs import leave\n"
        "if __name__ == '__main__':\n"
        f"    list(run_processes(leave, [(0, {str(path)!r})], jobs=1))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root})
    pid = wait_for(path)
    parent.kill()
    parent.wait()
    assert ends(pid)


COPY = """
import sys, time
from quickdrop_bench.core.processes import fork

def work():
    print("copy")
    return int(sys.argv[1])

print("before")
fork([work])
time.sleep(float(sys.argv[2]))
print("first")
"""


COMMAND = """
import atexit, sys
import quickdrop_bench.cli.main as cli
from quickdrop_bench.__main__ import command, main

own = cli.main

def run():
    atexit.register(print, "end")
    return own()

cli.main = run
"""


def script_of(text: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process whose output is buffered."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment = {**kept, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.run(
        [sys.executable, "-c", text, *argv], capture_output=True, text=True, timeout=60, env=environment
    )


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux")
@pytest.mark.parametrize(("code", "seconds", "ended"), [("0", "1", 0), ("3", "600", -9), ("a", "600", -9)])
def test_a_copy_ends_the_process_that_waits_for_it_only_if_it_fails(code: str, seconds: str, ended: int) -> None:
    done = script_of(COPY, code, seconds)
    assert done.returncode == ended
    assert done.stdout.split() == ["before", "copy", *(["first"] if not ended else [])]
    assert ("ValueError" in done.stderr) == (code == "a")


@pytest.mark.parametrize(("argv", "code"), [(["--version"], 0), (["nonsense"], 2), (["table", "--help"], 0)])
def test_a_command_ends_with_its_code_and_loses_no_output(argv: list[str], code: int) -> None:
    done = script_of(COMMAND + "command()", *argv)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "end")


def test_who_calls_main_ends_as_he_likes() -> None:
    done = script_of(COMMAND + "main(); sys.exit(7)", "--version")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (7, "end")
