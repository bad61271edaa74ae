"""Where a row comes from."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from quickdrop_bench import __version__

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "pandas")


def provenance(fabric: Fabric, preset: str) -> dict[str, Any]:
    """The columns that every row carries beside its value.

    Returns:
        ``preset, git_commit, git_dirty, package_version, versions, device, precision, created_at``; the commit
        is None outside a git checkout, times are UTC.
    """
    commit, dirty = _git()
    return {
        "preset": preset,
        "git_commit": commit,
        "git_dirty": dirty,
        "package_version": __version__,
        "versions": {
            "python": platform.python_version(),
            **_versions(),
            **(_cuda_versions() if fabric.device.type == "cuda" else {}),
        },
        "device": device_name(fabric.device, fabric.world_size),
        "precision": precision_name(fabric),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def device_name(device: torch.device, processes: int = 1) -> str:
    """A device in words, with the number of processes that have one each; a CPU with its instructions and threads."""
    several = f"{processes} × " if processes > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()} ({instructions}), {several}{threads} thread{'s'[: threads != 1]}"


def precision_name(fabric: Fabric) -> str:
    """Fabric's precision, and on a GPU whether products may round to TF32."""
    rounded = fabric.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return fabric.strategy.precision.precision + (" with TF32" if rounded else "")


@cache
def _cuda_versions() -> dict[str, str]:
    """CUDA's, cuDNN's and the driver's; the driver's is empty where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = ""
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        driver = (answer.splitlines() or [""])[0].strip()
    return {"cuda": torch.version.cuda or "", "cudnn": str(torch.backends.cudnn.version()), "driver": driver}


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package lies in, and whether its tracked files differ or its code has others."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None, None  # installed into some other project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD"), bool(changed or git("ls-files", "--others", "--exclude-standard", ".."))
    except (OSError, subprocess.SubprocessError):
        return None, None
