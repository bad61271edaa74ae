"""The recorded client updates: what they are measured from, which are kept, and how they lie on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder, retained_rounds
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.functional.aggregation import State
from tests.by_hand import assert_close, equal, plus_weighted
from tests.conftest import Clients, Make

TRAIN = Phase("fl-training", rounds=5, local_steps=3, batch_size=8, lr=0.2, participation=0.67)
CPU = torch.device("cpu")
ZERO, ONES = {"w": torch.zeros(1)}, {"w": torch.ones(1)}


def train(
    federation: Federation, clients: Clients, folder: Path, every: int, seen: list[RoundInfo]
) -> tuple[State, PhaseResult, UpdateHistory]:
    initial, recorder = federation.fresh_state(1, "init"), UpdateRecorder(folder, TRAIN.rounds, every)
    result = federation.run(initial, clients, TRAIN, 1, record=recorder, on_round=seen.append)
    return initial, result, UpdateHistory(folder, CPU)


def payload_bytes(path: Path) -> int:
    """Bytes of a safetensors file after its header: 8 bytes of length, then that many of JSON."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


@pytest.mark.parametrize(
    ("rounds", "every", "expected"), [(4, 1, [0, 1, 2, 3]), (10, 3, [0, 3, 6]), (10, 5, [0, 5]), (4, 5, [0])]
)
def test_retained_rounds_by_hand(rounds: int, every: int, expected: list[int]) -> None:
    """1-based: t_1 = 1, t_2 = 1 + Δt, …; J = ⌊K/Δt⌋ of them."""
    assert list(retained_rounds(rounds, every)) == expected
    assert 3 * 10**20 in retained_rounds(10**21, 3)  # without taking memory


def test_updates_add_up_to_the_training(make_federation: Make, toy_clients: Clients, tmp_path: Path) -> None:
    """θ_{k+1} = θ_k + Σ (n_i/Σn)·U_i over the round's participants, for every round: so the reference is θ_k, and
    clients, rounds and counts belong together."""
    seen: list[RoundInfo] = []
    state, result, history = train(make_federation(), toy_clients, tmp_path, 1, seen)
    assert history.participants == {info.round: list(info.participants) for info in seen}
    assert any(len(clients) == 2 for clients in history.participants.values())
    assert equal(history.initial(), state)
    for info in seen:
        parts = {client: history.update(info.round, client) for client in info.participants}
        counts = {client: count for client, (_, count) in parts.items()}
        assert counts == {client: len(toy_clients[client]) for client in info.participants}
        weights = {client: count / sum(counts.values()) for client, count in counts.items()}
        assert_close(info.state, plus_weighted(state, {i: update for i, (update, _) in parts.items()}, weights))
        state = info.state
    assert equal(result.state, state)


def test_what_lies_on_disk(make_federation: Make, toy_clients: Clients, tmp_path: Path) -> None:
    """Retained rounds only, as many bytes as the formula says, the same again; recording changes no training.

    4·P·(1 + Σ_j participants): on disk, every update has its 8-byte count beside it.
    """
    federation = make_federation()
    contents = []
    for _ in range(2):
        initial, recorded, history = train(federation, toy_clients, tmp_path, 2, [])
        contents.append({path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    assert list(history.participants) == [0, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000", "0002", "initial.safetensors"]
    # The ConvNet on 1×8×8 images with 4 filters, 2 blocks, 3 classes: two blocks with affine norms, and 16·3 + 3.
    parameters = (9 * 4 + 4 + 8) + (9 * 16 + 4 + 8) + (4 * 2 * 2 * 3 + 3)
    participants = 2 + 2  # two of three clients in each of the rounds 0 and 2
    assert history.stored_bytes([0, 2]) == 4 * parameters * (1 + participants)
    payload = sum(payload_bytes(path) for path in contents[0])
    assert payload == history.stored_bytes([0, 2]) + 8 * participants
    plain = federation.run(initial, toy_clients, TRAIN, 1)
    assert equal(recorded.state, plain.state)
    assert recorded.cost.upload_bytes == plain.cost.upload_bytes


def test_ids_are_ordered_as_numbers_and_stray_files_ignored(tmp_path: Path) -> None:
    for client in (10_000, 9_999, 2):
        UpdateRecorder(tmp_path, rounds=1, every=1)(0, client, 1, ZERO, ONES)
    (tmp_path / "0000" / ".0003.17.tmp.safetensors").touch()  # of a writer that was killed
    assert UpdateHistory(tmp_path, CPU).participants == {0: [2, 9_999, 10_000]}


def test_an_update_without_its_count_and_a_damaged_initial_model_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "updates"
    UpdateRecorder(folder, rounds=1, every=1)(0, 3, 1, ZERO, ONES)
    save_file(ONES, folder / "0000" / "0003.safetensors")
    with pytest.raises(BadInput, match=r"^--artifacts-dir .*: updates/0000/0003\.safetensors is missing or damaged"):
        UpdateHistory(folder, CPU).update(0, 3)
    for content in (b"", b"\xff" * 50, b"\x02" + bytes(7) + b"{}x"):
        (folder / "initial.safetensors").write_bytes(content)
        with pytest.raises(BadInput, match=r"updates/initial\.safetensors is missing or damaged"):
            UpdateHistory(folder, CPU).initial()
