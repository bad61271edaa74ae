"""Commands whose clients are spread over two processes end as with one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quickdrop_bench.cli import main
from tests.conftest import NEVER_EQUAL, TINY

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "quickdrop_bench"]
TWO = ["--devices", "2", "--accelerator", "cpu", "--wandb", "disabled"]
LONG = ["train", *TINY, "--rounds", "150", "--wandb", "disabled"]
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


def environment() -> dict[str, str]:
    """One thread a process: with more, sums round differently."""
    mine = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    return {**mine, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(argv: list[str], *, program: list[str] = PROGRAM, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*program, *argv], env=environment(), capture_output=True, text=True, timeout=120)
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


@pytest.mark.slow
@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_two_processes_end_as_one(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same values and same weights within 1e-6 (but for values counted in images, which are equal), same files."""
    found = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if name == "one":
            assert main([*argv, "--wandb", "disabled"]) == 0
        else:
            run([*argv, *TWO])
        files = {str(path) for path in Path().rglob("*") if path.is_file()}
        found[name] = values(Path("results")), tensors(Path("artifacts")), files
    (rows, weights, files), (other_rows, other_weights, other_files) = found["one"], found["two"]
    assert len(rows) > 20
    assert other_rows == pytest.approx(rows, abs=1e-6, nan_ok=True)
    assert sorted(other_weights) == sorted(weights)
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert {file for file in other_files if not file.endswith(".lock")} == {
        file for file in files if not file.endswith(".lock")
    }


@pytest.mark.slow
def test_only_the_first_process_speaks(tmp_path: Path) -> None:
    done = run(["train", *TINY, *TWO])
    assert len(done.stdout.splitlines()) == 1
    rounds = [line for line in done.stderr.splitlines() if "fl-training" in line]
    assert len(rounds) == 2
    again = run(["train", *TINY, *TWO])
    assert "fl-training" not in again.stderr
    assert again.stdout.split("accuracy")[0] == done.stdout.split("accuracy")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--dataset", "mnist", "--data-dir", "nowhere"], 2, "--data-dir nowhere"),
        (["--lr", "1e30"], 1, "diverged"),
    ],
)
def test_an_error_that_all_meet_is_said_once(argv: list[str], code: int, words: str) -> None:
    began = time.monotonic()
    done = run(["train", *TINY, *TWO, *argv], code=code)
    assert done.stderr.count("quickdrop-bench:") == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 90  # well below what the second process would wait


@pytest.mark.slow
def test_torchrun_starts_the_processes(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "quickdrop_bench"]
    options = ["train", *TINY, "--accelerator", "cpu", "--wandb", "disabled"]
    assert "Starting with 2 processes" in run(options, program=torchrun).stderr
    other = run([*options, "--devices", "1"], program=torchrun, code=1)
    assert "--devices 1: with --num-nodes 1, these have to be the 2 processes that were started" in other.stderr


@pytest.mark.slow
def test_inside_a_slurm_job_without_srun_the_processes_are_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch script itself is one process, for all that the job has tasks."""
    job = {"JOB_ID": "1", "JOB_NAME": "batch", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NODELIST": "localhost"}
    for name, value in {**job, "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert "Starting with 2 processes" in run(["train", *TINY, *TWO]).stderr


def test_cells_or_clients_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *TINY, "--scales", "1,10", "--jobs", "2", *TWO]) == 2
    assert "--jobs 2: either cells or, with --devices, clients run side by side" in capsys.readouterr().err


def test_several_machines_need_somebody_who_starts_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, *TWO, "--num-nodes", "2"]) == 2
    assert "--num-nodes 2: several machines are started by torchrun or srun" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_of_one_process_alone_ends_all_and_leaves_no_wrong_rows(tmp_path: Path) -> None:
    """Going on with the next method would mix it with what the other process still does."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('LOCAL_RANK') == '1':\n"
        "    from quickdrop_bench.harness import run\n"
        "    whole = run._stage\n"
        "    def stage(session, its, context, name, result):\n"
        "        if (its.method, name) == ('sga-or', 'unlearning'):\n"
        "            raise RuntimeError('CUDA out of memory')\n"
        "        return whole(session, its, context, name, result)\n"
        "    run._stage = stage\n"
    )
    mine = {**environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [*PROGRAM, "table", "2", *TINY, *TWO, "--methods", "sga-or,quickdrop"]
    done = subprocess.run(command, env=mine, capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert "process 1: RuntimeError: CUDA out of memory" in done.stderr
    rows = map(json.loads, Path("results/quick/table2/rows.jsonl").read_text().splitlines())
    assert not {row["stage"] for row in rows} & {"unlearning", "recovery", "total"}


@pytest.mark.slow
def test_an_interruption_ends_both(tmp_path: Path) -> None:
    argv = [*PROGRAM, "train", *TINY, "--rounds", "2000", *TWO]
    with subprocess.Popen(argv, env=environment(), stderr=subprocess.PIPE, text=True, process_group=0) as process:
        while not list(Path("artifacts").rglob("training.ckpt")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "quickdrop-bench: interrupted; the same command continues from here"
    assert "Traceback" not in err


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What one process that nobody kills makes of :data:`LONG`."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(LONG) == 0
    return tensors(folder / "artifacts")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("victim", ["first", "second"])
def test_one_that_is_killed_takes_the_other_along_and_the_next_run_goes_on(
    victim: str, unbroken: dict[str, torch.Tensor]
) -> None:
    two = [*LONG, *TWO]
    with subprocess.Popen(
        [*PROGRAM, *two], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not list(Path("artifacts").rglob("training.ckpt")):
            assert process.poll() is None
            time.sleep(0.05)
        (child,) = children(process.pid)
        os.kill(process.pid if victim == "first" else child, signal.SIGKILL)
        assert process.wait(30) != 0
        patience = time.monotonic() + 30
        while Path(f"/proc/{child}").exists() and time.monotonic() < patience:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
    assert list(Path("artifacts").rglob("training.ckpt"))
    run([*two, "--resume"])
    resumed = tensors(Path("artifacts"))
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-6, atol=1e-6, equal_nan=True)
