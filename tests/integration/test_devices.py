"""Commands whose clients are spread over two processes end as with one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from safetensors.torch import load_file

from quickdrop_bench.cli.main import main
from tests.conftest import NEVER_EQUAL, TINY
from tests.integration.forks import start_script

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "quickdrop_bench"]
TWO = ["--devices", "2", "--accelerator", "cpu", "--wandb", "disabled"]
LONG = ["train", *TINY, "--rounds", "60", "--wandb", "disabled"]
"""Rounds enough to be killed among them."""
UNRELIABLE = ["--dropout-rate", "0.3", "--straggler-rate", "0.3", "--corrupt-rate", "0.3", "--participation", "0.7"]
FINE_TUNING = ["--fine-tune", "2", "--fine-tune-batch-size", "4", "--fine-tune-steps", "3"]
COMMANDS = {
    "all methods, a class": ["table", "2", *TINY],
    "all methods, a client": ["table", "4", *TINY],
    "relearning, then another class": ["table", "5", *TINY, "--class", "9,3", "--methods", "quickdrop,sga-or"],
    "tuned": ["table", "2", *TINY, "--methods", "quickdrop", "--protocol", "tuned"],
    "clients that fail": ["table", "2", *TINY, "--clients", "8", "--rounds", "5", "--iid", *UNRELIABLE],
    "fine-tuning": ["table", "2", *TINY, "--methods", "quickdrop", *FINE_TUNING],
    "sweep": ["sweep", *TINY, "--scales", "1,10", "--methods", "quickdrop"],
}


def environment(*before: Path) -> dict[str, str]:
    """One thread a process: with more, sums round differently."""
    mine = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    return {**mine, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, [*before, ROOT]))}


def run(argv: list[str], *, program: list[str] = PROGRAM, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*program, *argv], env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done


def values(folder: Path) -> dict[tuple[object, ...], float | None]:
    """Every measured value but times."""
    found: dict[tuple[object, ...], float | None] = {}
    for path in sorted(folder.rglob("rows.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            names = ("spec_hash", "method", "seed", "request", "stage", "metric", "phase", "round")
            if not row["metric"].endswith(NEVER_EQUAL):
                found[path.parent.name, *(row.get(name) for name in names)] = row["value"]
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that trained federations hold."""
    return {
        f"{path.relative_to(folder)} {name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


DIVERGING = ["train", *TINY, "--lr", "1e30"]
ONE_AFTER_THE_OTHER = """
import contextlib, json, os, sys
from quickdrop_bench.cli.main import main

for folder, name, argv, code in json.loads(sys.argv[1]):
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    with open(f"../{name} {os.environ['RANK']}.txt", "w") as said:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ended = main(argv)
    assert ended == (code if os.environ["RANK"] == "0" else 0), argv
"""


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, warm_server: None) -> Path:
    """Where two processes, as torchrun starts them, have run all of :data:`COMMANDS`, each in a folder of its name.

    The sweep was run twice, and a training that diverges last. What each process said is in files beside the folders.
    """
    place = tmp_path_factory.mktemp("two")
    jobs = [(str(place / name), name, [*argv, *TWO], 0) for name, argv in COMMANDS.items()]
    jobs.append((str(place / "sweep"), "sweep again", [*COMMANDS["sweep"], *TWO], 0))
    jobs.append((str(place / "diverging"), "diverging", [*DIVERGING, *TWO], 1))
    world = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    world |= {
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    both = [
        start_script(
            ONE_AFTER_THE_OTHER,
            [json.dumps(jobs)],
            tmp_path_factory.mktemp(f"rank{k}"),
            {**environment(), **world, "RANK": str(k), "LOCAL_RANK": str(k)},
        )
        for k in range(2)
    ]
    while all(one.process.is_alive() for one in both):
        wait([one.process.sentinel for one in both])
    if any(one.process.exitcode for one in both):  # the other would wait for it
        for one in both:
            one.process.kill()
    for one in both:
        code, _, err = one.end()
        assert code == 0, err
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_end_as_one(name: str, by_two: Path) -> None:
    """Same values and same weights within 1e-6 (but for values counted in images, which are equal), same files."""
    assert main([*COMMANDS[name], "--wandb", "disabled"]) == 0
    here, there = Path(), by_two / name
    rows, weights = values(here / "results"), tensors(here / "artifacts")
    other_weights = tensors(there / "artifacts")
    assert len(rows) > 20
    assert values(there / "results") == pytest.approx(rows, abs=1e-6, nan_ok=True)
    assert sorted(other_weights) == sorted(weights)
    for key, value in weights.items():
        torch.testing.assert_close(other_weights[key], value, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert files(there) == files(here)
    assert "fl-training" in (by_two / f"{name} 0.txt").read_text()
    assert (by_two / f"{name} 1.txt").read_text() == ""


def files(folder: Path) -> set[str]:
    """What a command left, without its locks."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


@pytest.mark.slow
def test_processes_that_the_command_starts_end_the_same_and_the_first_alone_speaks(by_two: Path) -> None:
    done = run([*COMMANDS["sweep"], *TWO])
    shutil.rmtree("cache")  # the fonts that matplotlib found
    assert values(Path("results")) == pytest.approx(values(by_two / "sweep/results"), abs=1e-6, nan_ok=True)
    assert files(Path()) == files(by_two / "sweep")
    assert done.stderr.count("fl-training · round 1/2") == 2  # two scales
    again = (by_two / "sweep again 0.txt").read_text()
    assert "0 runs to make" in again
    assert "fl-training" not in again


@pytest.mark.slow
def test_torchrun_starts_processes_and_an_error_that_all_meet_is_said_once(by_two: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "quickdrop_bench"]
    options = ["train", *TINY, "--accelerator", "cpu", "--wandb", "disabled"]
    assert "Starting with 2 processes" in run(options, program=torchrun).stderr
    done = run(["train", *TINY, *TWO, "--dataset", "mnist", "--data-dir", "nowhere"], code=2)
    for said, last in (
        (done.stderr, "--data-dir nowhere"),
        ((by_two / "diverging 0.txt").read_text(), "diverged"),
    ):
        assert said.count("quickdrop-bench:") == 1
        assert last in said.splitlines()[-1]
        assert "Traceback" not in said
    assert (by_two / "diverging 1.txt").read_text() == ""


def test_as_many_processes_are_needed_as_torchrun_has_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = {"RUN_ID": "1", "USE_AGENT_STORE": "False"}
    processes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}
    for name, value in {**{f"TORCHELASTIC_{name}": value for name, value in world.items()}, **processes}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *TINY, "--accelerator", "cpu", "--wandb", "disabled", "--devices", "1"]) == 2
    words = "--devices 1: with --num-nodes 1, these have to be the 2 processes that were started"
    assert words in capsys.readouterr().err


def test_inside_a_slurm_job_without_srun_the_processes_are_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch script itself is one process, for all that the job has tasks."""
    job = {"JOB_ID": "1", "JOB_NAME": "batch", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NODELIST": "localhost"}
    for name, value in {**job, "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    asked: dict[str, object] = {}

    def fabric(**options: object) -> None:
        asked.update(options)
        raise ValueError("not started in this test")

    monkeypatch.setattr("quickdrop_bench.cli.machine.Fabric", fabric)
    assert main(["train", *TINY, *TWO]) == 2
    assert (asked["devices"], type(asked["plugins"])) == (2, LightningEnvironment)


@pytest.mark.slow
def test_an_error_of_one_process_alone_ends_all_and_leaves_no_wrong_rows(tmp_path: Path) -> None:
    """Going on with the next method would mix it with what the other process still does."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from quickdrop_bench.methods import METHODS\n"
        "serve = METHODS['sga-or'].unlearn\n"
        "def unlearn(self, context):\n"
        "    if os.environ['LOCAL_RANK'] == '1':\n"
        "        raise RuntimeError('CUDA out of memory')\n"
        "    return serve(self, context)\n"
        "METHODS['sga-or'].unlearn = unlearn\n"
    )
    command = [*PROGRAM, "table", "2", *TINY, *TWO, "--methods", "sga-or,quickdrop"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "process 1: RuntimeError: CUDA out of memory" in done.stderr
    rows = map(json.loads, Path("results/quick/table2/rows.jsonl").read_text().splitlines())
    assert not {row["stage"] for row in rows} & {"unlearning", "recovery", "total"}


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_an_interruption_ends_both(stopped: bool, tmp_path: Path) -> None:
    # With nohup the system, too, leaves a process alone whose parent is gone.
    argv = ["nohup", *PROGRAM, "train", *TINY, "--rounds", "2000", *TWO]
    with subprocess.Popen(argv, env=environment(), stderr=subprocess.PIPE, text=True, process_group=0) as process:
        while not list(Path("artifacts").glob("*/training.ckpt")):
            assert process.poll() is None
            time.sleep(0.05)
        (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        if stopped:
            os.kill(child, signal.SIGSTOP)
            time.sleep(1)  # until the first one waits for it
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=600)
    ended(child)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "quickdrop-bench: interrupted; the same command continues from here"
    assert "Traceback" not in err


def kill_while_it_trains(argv: list[str], victim: str) -> None:
    """Start a command in two processes, and kill one as soon as they have saved a state; the other has to end."""
    before = states_saved()
    with subprocess.Popen([*PROGRAM, *argv], env=environment(), stderr=subprocess.DEVNULL) as process:
        while states_saved() == before:
            assert process.poll() is None
            time.sleep(0.05)
        (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        os.kill(process.pid if victim == "first" else child, signal.SIGKILL)
        assert process.wait(600) != 0
        ended(child)
    assert states_saved()


def ended(process: int) -> None:
    """Wait until there is no such process."""
    patience = time.monotonic() + 600
    while Path(f"/proc/{process}").exists() and time.monotonic() < patience:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


def states_saved() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path("artifacts").glob("*/training.ckpt")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_one_that_is_killed_takes_the_other_along_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_while_it_trains([*LONG, *TWO], "first")
    kill_while_it_trains([*LONG, *TWO, "--resume"], "second")
    capsys.readouterr()
    assert main([*LONG, "--resume"]) == 0
    assert "round 1/" not in capsys.readouterr().err
    resumed = tensors(tmp_path / "artifacts")
    (tmp_path / "unbroken").mkdir()
    monkeypatch.chdir(tmp_path / "unbroken")
    assert main(LONG) == 0
    for name, value in tensors(Path("artifacts")).items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-6, atol=1e-6, equal_nan=True)
