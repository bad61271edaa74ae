"""Clients spread over processes: who has whom, and that all end with the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.federation import ranks
from quickdrop_bench.federation.ranks import (
    ClientParallel,
    add_up,
    hand_round,
    is_first,
    is_shared,
    on_first,
    rank,
    same,
    shares,
    spread,
)
from tests.conftest import TINY

MEETING = 10.0
"""Seconds in which two processes have to start."""

WORK = {7: 5, 3: 1, 4: 4, 9: 2}


@given(st.dictionaries(st.integers(0, 50), st.integers(1, 1000), max_size=30), st.integers(1, 8))
def test_every_client_is_in_one_process_and_loads_are_even(work: dict[int, int], processes: int) -> None:
    found = shares(work, processes)
    assert len(found) == processes
    assert sorted(client for part in found for client in part) == sorted(work)
    loads = [sum(work[client] for client in part) for part in found]
    assert max(loads) - min(loads) <= max(work.values(), default=0)


def test_clients_of_equal_size_are_split_evenly_and_reproducibly() -> None:
    assert shares(dict.fromkeys(range(10), 256), 4) == shares(dict.fromkeys(reversed(range(10)), 256), 4)
    assert [len(part) for part in shares(dict.fromkeys(range(10), 256), 4)] == [2, 2, 3, 3]


def test_one_process_computes_all_and_lets_errors_through() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    assert list(spread(fabric, "test", WORK, lambda client: client * 2).items()) == [(7, 14), (3, 6), (4, 8), (9, 18)]
    total = torch.ones(2)
    add_up(fabric, [total])
    assert total.equal(torch.ones(2))
    with pytest.raises(ZeroDivisionError):
        spread(fabric, "test", WORK, lambda client: client / 0)
    assert on_first(fabric, lambda: 3) == 3


class Odd(Exception):
    """One that cannot be sent: its class takes other arguments than its message."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def expect(kind: type[Exception], words: str, action: Callable[[], object]) -> None:
    with pytest.raises(kind, match=words) as raised:
        action()
    assert is_shared(raised.value) == (kind is not SystemError)


def in_two_processes(fabric: Fabric) -> None:
    """What each of two processes checks; a process that fails fails the test."""
    own = fabric.global_rank
    assert (rank(), is_first()) == (own, own == 0)
    mine = shares(WORK, 2)[own]

    reports = spread(fabric, "test", WORK, lambda client: (client, own))
    assert list(reports) == list(WORK)
    assert [client for client, (_, by) in reports.items() if by == own] == sorted(mine, key=list(WORK).index)

    wide, alone = torch.full((2, 3), float(own + 1)), torch.tensor(0.1 * own)
    add_up(fabric, [wide, alone])
    assert wide.equal(torch.full((2, 3), 3.0))
    assert alone == torch.tensor(0.1)

    held = {client: [torch.full((2,), -1.0), torch.zeros(1)] for client in WORK}
    for client in mine:
        held[client] = [torch.tensor([client + 0.1, float("nan")]), torch.tensor([float(own)])]
    hand_round(fabric, WORK, held.__getitem__)
    for client, (first, second) in held.items():
        assert first[0] == torch.tensor(client + 0.1)
        assert first[1].isnan()
        assert second == float(client in shares(WORK, 2)[1])

    time.sleep(own * (MEETING + 1))  # the other waits longer than it did for the start
    assert on_first(fabric, lambda: f"by {own}") == "by 0"

    def fails(error: Exception, only: int) -> Callable[[], object]:
        def compute(client: int) -> int:
            if client == only:
                raise error
            return client

        return lambda: spread(fabric, "test", WORK, compute)

    # Both hear of an error that only one has met, and both can go on.
    for client in WORK:
        expect(ZeroDivisionError, "by zero", fails(ZeroDivisionError("by zero"), client))
        expect(BadInput, "--alpha 3: nonsense", fails(BadInput("--alpha", 3, "nonsense"), client))
        expect(RuntimeError, "Odd: 1 and 2", fails(Odd(1, 2), client))

    def refuse() -> None:
        assert own == 0
        raise BadInput("--results-dir", "x", "it cannot be written")

    expect(BadInput, "--results-dir x: it cannot be written", lambda: on_first(fabric, refuse))
    assert list(spread(fabric, "test", WORK, lambda client: client)) == list(WORK)

    assert same(fabric, (1, "a", float("nan")))
    assert not same(fabric, own)
    expect(SystemError, "different ways", lambda: spread(fabric, ("round", own), WORK, lambda client: client))

    layer = torch.nn.Linear(2, 1)
    model, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    assert model.module is layer
    loss = model(torch.full((1, 2), float(own))).sum()
    (gradient,) = torch.autograd.grad(loss, [layer.weight], create_graph=True)
    fabric.backward(model(torch.full((1, 2), float(own))).sum() + gradient.sum() * 0)
    assert layer.weight.grad is not None
    assert layer.weight.grad.equal(torch.full((1, 2), float(own)))  # nothing was averaged
    optimizer.step()


ALONE = """
import sys
from datetime import timedelta
from quickdrop_bench.cli import main
from quickdrop_bench.federation import ranks

ranks.MEETING, main.LONGEST_END = timedelta(seconds=1), 0.0
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_says_so_when_another_one_never_comes(number: int) -> None:
    world = {"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    world |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(number), "LOCAL_RANK": str(number)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    world |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", ALONE, "train", *TINY, "--accelerator", "cpu"]
    done = subprocess.run(argv, env={**os.environ, **world}, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2 - number, "")
    said = done.stderr.splitlines()[-1]
    assert "the processes cannot be launched: " in said
    assert "imed out after" in said


@pytest.mark.slow
def test_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    monkeypatch.setattr(ranks, "MEETING", timedelta(seconds=MEETING))
    fabric = Fabric(accelerator="cpu", devices=2, strategy=ClientParallel(start_method="spawn"))
    fabric.launch(in_two_processes)
