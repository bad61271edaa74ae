"""Processes for independent work, a few at a time, and copies of this one for a share of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

UNHEARD = 5.0
"""Seconds after which an interruption that the main thread has not heard of ends the process."""

_share: list[Callable[[int], int]] = []
"""What copies of this process do, if there may be any."""


def run_processes(
    target: Callable[..., None], calls: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[int, int]]:
    """Run every call in a process of its own, at most ``jobs`` at a time.

    Args:
        target: an importable function; it should call :func:`die_with_parent`.
        calls: its arguments; they are pickled.
        jobs: how many processes at a time.

    Yields:
        Index and exit code of every call, as they end; negative codes are signals. When the caller stops listening,
        running processes are ended.
    """
    context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    running: dict[int, tuple[int, BaseProcess]] = {}
    waiting = list(enumerate(calls))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, arguments = waiting.pop(0)
                process: BaseProcess = context.Process(target=target, args=arguments)
                process.start()
                running[process.sentinel] = index, process
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                index, process = running.pop(sentinel)
                process.join()
                yield index, process.exitcode or 0
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def die_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def allow_copies(share: Callable[[int], int]) -> None:
    """Let this process be copied, which runs its command line and nothing else, and has computed nothing.

    Args:
        share: what a copy does, from its number to its exit code.
    """
    _share.append(share)


def forbid_copies() -> Callable[[int], int] | None:
    """From now on this process computes, and threads and CUDA do not survive a fork; what copies would have done."""
    return _share.pop() if _share else None


def fork(works: Sequence[Callable[[], int]]) -> None:
    """Start copies of this process, each of which does some work and ends with the exit code which that returns.

    They hear no Ctrl-C. If one fails, this process is ended, which would wait for it.
    """
    sys.stdout.flush()
    gc.freeze()  # what all have is not looked through for garbage, which would copy it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where that is ignored, nobody hears how they end
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        copies = [_copy(work) for work in works]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for copy in copies:
        threading.Thread(target=_end_if_it_fails, args=(copy,), daemon=True).start()


def _copy(work: Callable[[], int]) -> int:
    """The process that does the work; in it, this does not return."""
    if process := os.fork():
        return process
    code = 1
    try:
        code = work()
    except BaseException:  # it would go on as the process that it is a copy of
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def _end_if_it_fails(copy: int) -> None:
    if os.waitpid(copy, 0)[1]:
        os.kill(os.getpid(), signal.SIGKILL)


def end_when_interrupted() -> None:
    """From now on Ctrl-C ends this process even while it waits for another one that stands still, with exit code 130.

    Python hears of it only once the library that waits returns; the system writes to a pipe at once.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # done already, or a background job
        return
    heard, (reads, writes) = threading.Event(), os.pipe()

    def hear(number: int, frame: FrameType | None) -> None:
        heard.set()
        signal.default_int_handler(number, frame)

    def watch() -> None:
        while os.read(reads, 1)[0] != signal.SIGINT:
            pass
        if not heard.wait(UNHEARD):
            os.write(2, b"quickdrop-bench: interrupted; the same command continues from here\n")
            os._exit(130)

    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes)
    signal.signal(signal.SIGINT, hear)
    threading.Thread(target=watch, daemon=True).start()
