"""Commands in processes forked from one that has imported everything: they are at work at once.

Importing takes longer than all that such a command does.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

from quickdrop_bench import __main__ as program

WARMED = "tests.integration.warmed"
"""What the first process imports."""


def fork(action: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """A process that calls a function of a module; the fixture ``warm_server`` has to be there."""
    process = multiprocessing.get_context("forkserver").Process(target=action, args=arguments)
    process.start()
    return process


def is_warm() -> None:
    """End with 0 in a process that begins with everything imported; the server says nothing where it fails to."""
    sys.exit(WARMED not in sys.modules)


@dataclass(frozen=True)
class Forked:
    """A command that runs.

    Attributes:
        process: it leads a process group.
        out, err: files that take what it says.
    """

    process: ForkServerProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def end(self, timeout: float = 600) -> tuple[int, str, str]:
        """Wait for it; exit code, standard output and standard error."""
        self.process.join(timeout)
        code = self.process.exitcode
        self.process.kill()
        assert code is not None, f"it does not end: {self.err.read_text()}"
        return code, self.out.read_text(), self.err.read_text()


def start_command(argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Forked:
    """Start ``python -m quickdrop_bench`` in a folder, without standard input."""
    return _start("", ["quickdrop_bench", *argv], folder, environment)


def start_script(code: str, argv: Sequence[object], folder: Path, environment: Mapping[str, str]) -> Forked:
    """Start ``python -c`` with some code in a folder, without standard input."""
    return _start(code, ["-c", *map(str, argv)], folder, environment)


def _start(code: str, argv: list[str], folder: Path, environment: Mapping[str, str]) -> Forked:
    number = len(list(folder.glob("*.out")))
    out, err = (folder / f"{number}.{kind}" for kind in ("out", "err"))
    out.touch(), err.touch()
    return Forked(fork(_run, code, argv, folder, dict(environment), out, err), out, err)


def _run(code: str, argv: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, name in enumerate((os.devnull, out, err)):
        os.dup2(os.open(name, os.O_RDWR), stream)
    sys.argv = argv
    rank_zero_only.rank = int(environment.get("RANK", "0"))  # Lightning has read it when it was imported
    if code:
        exec(code, {"__name__": "__main__"})  # noqa: S102 - the test's own
        sys.exit(0)
    sys.exit(program.main())
