"""The command line from its arguments to an exit code."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

import yaml

from quickdrop_bench import __version__
from quickdrop_bench.cli.commands import ANSWERS, CHANGES, FUNCTIONS, SERVES
from quickdrop_bench.cli.output import Output, forgiving_output
from quickdrop_bench.cli.parser import COMMANDS, PROGRAM
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.core.allocator import keep_freed_memory
from quickdrop_bench.core.errors import BadInput, exhausted
from quickdrop_bench.core.launcher import forget_leftovers, process_number

LONGEST_END = 120.0
"""Seconds that the first process may take to end, with its runs in W&B, after an error that this one has met too."""

LAST_MOMENTS = 3.0
"""Seconds that a process may take to vanish once its connections are closed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None takes the process's.

    Returns:
        0; 1 if a run diverged, or training or writing failed, but not for output of finished work; 2 for input that
        cannot be used, with one sentence on standard error; 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else ""
    with forgiving_output() as out:
        code = _answer(argv)
    if out.problem and not isinstance(out.problem, BrokenPipeError):  # as of "| head"
        asked = command in ANSWERS or not {"--dry-run", "--print_config", "--help", "-h", "--version"}.isdisjoint(argv)
        kept = "" if asked or code else f"the {'request was served' if command in CHANGES else 'work is done'}, and "
        err = Output(sys.stderr)
        print(f"{PROGRAM}: {kept}standard output cannot be written ({out.problem.strerror})", file=err)
        err.flush()
        return code or int(asked)
    return code


def _answer(argv: Sequence[str]) -> int:
    keep_freed_memory()
    if not os.environ.get("COLUMNS", "").strip("0"):  # on a terminal of no width nothing would be printed
        os.environ.pop("COLUMNS", None)
    try:
        forget_leftovers()  # before Lightning looks at them
        if process := process_number():
            return follow(argv, process)
        return _run(argv)
    except BadInput as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError, MemoryError, RuntimeError, ImportError) as error:
        said = exhausted(error)
        if not said and isinstance(error, RuntimeError | ImportError):
            raise
        print(f"{PROGRAM}: {said or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "what was finished is kept" if argv[0] in SERVES else "the same command continues from here"
        print(f"{PROGRAM}: interrupted; {kept}", file=sys.stderr)
        return 130


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help", "--version"):
        if len(argv) > 1:
            raise BadInput(
                argv[0], " ".join(argv[1:]), "nothing goes with it; COMMAND --help shows a command's options"
            )
        print(_overview() if argv[0] != "--version" else f"{PROGRAM} {__version__}")
        return 0
    line = parse(argv)
    if line.prints_config:
        print(yaml.safe_dump(line.as_file(), sort_keys=False, allow_unicode=True), end="")
        return 0
    return FUNCTIONS[line.command](line)


def _overview() -> str:
    """What ``--help`` prints: the commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    head = f"usage: {PROGRAM} COMMAND [OPTIONS]\n\nBenchmarks of federated unlearning.\n\ncommands:"
    more = f"{PROGRAM} COMMAND --help shows the options of a command, --help-methods\nthe settings of the methods."
    return "\n".join([head, *lines, "", more])


def follow(argv: Sequence[str], process: int) -> int:
    """Run one command beside the first process, which does all the talking and ends this one when it is interrupted.

    Returns:
        0, also where the command ends with an error that all have met: the first process says so. 1 if this process
        alone cannot go on, which Fabric's launcher, torchrun and ``srun --kill-on-bad-exit=1`` take as a reason to end
        the others.
    """
    from quickdrop_bench.federation.ranks import is_shared

    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            _run(argv)
    except Exception as error:
        # What is wrong with the input or the disk is most likely wrong for all, though each finds it by itself.
        wait = 0.0 if is_shared(error) else LONGEST_END if isinstance(error, BadInput | OSError) else LAST_MOMENTS
        time.sleep(wait)
        if is_shared(error):
            return 0  # the first process has met the same
        print(f"{PROGRAM}: process {process}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _end_after(parent: int) -> None:
    """End this process when the one that started it is gone: it, and Python's own end, may wait for that one."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(0)
