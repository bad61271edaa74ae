"""Clients that drop out, are late or send updates that are no numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.federation.faults import Fate, Faults, corrupted
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.functional.aggregation import State, is_finite
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.methods.context import Context
from quickdrop_bench.methods.fed_eraser import FedEraser
from quickdrop_bench.methods.fu_mp import FuMp, measurable_data
from quickdrop_bench.methods.s2u import S2U
from quickdrop_bench.store import artifacts
from tests.asked import asked, recorded, synthetic_sets
from tests.by_hand import assert_close, equal, minus, plus_weighted
from tests.conftest import TINY, Clients, Guarded, Make, Run, read_rows

TRAIN = Phase("fl-training", rounds=8, local_steps=3, batch_size=8, lr=0.1)
ONE = replace(TRAIN, rounds=1)
SOME = Faults(0.3, 0.2, 0.2)
RATES = ("--dropout-rate", "0.3", "--straggler-rate", "0.2", "--corrupt-rate", "0.2")
NO_RATES = ("dropout_rate", "straggler_rate", "corrupt_rate")
COUNTERS = {"dropouts", "stragglers", "rejected_updates"}


@dataclass(frozen=True)
class Scripted(Faults):
    """What the clients named here do in every round; the others return."""

    script: Mapping[int, Fate] = field(default_factory=dict)

    def fates(self, *args: object, **options: object) -> dict[int, Fate]:
        drawn = super().fates(*args, **options)  # type: ignore[arg-type]
        return {client: self.script.get(client, Fate.RETURNS) for client in drawn}


def without_seconds(cost: Cost) -> Cost:
    return replace(cost, seconds=0, distillation_seconds=0)


def train(
    federation: Federation, clients: Clients, phase: Phase = TRAIN, **options: object
) -> tuple[PhaseResult, list[RoundInfo]]:
    seen: list[RoundInfo] = []
    initial = federation.fresh_state(1, "init")
    return federation.run(initial, clients, phase, 1, on_round=seen.append, **options), seen  # type: ignore[arg-type]


def updates_of(federation: Federation, clients: Clients, start: State, phase: Phase) -> dict[int, State]:
    """Each client's own update of one round, without any faults."""
    alone = Federation(federation.fabric, federation.scratch_model())
    return {i: minus(alone.run(start, {i: d}, phase, 1).state, start) for i, d in clients.items()}


# What is drawn.


def test_frequencies_are_near_the_rates() -> None:
    """6000 draws have a standard deviation of at most 0.0065."""
    counts = Counter(fate for k in range(300) for fate in Faults(0.3, 0.2, 0.1).fates(1, "p", k, range(20)).values())
    expected = {Fate.DROPPED: 0.3, Fate.LATE: 0.7 * 0.2, Fate.CORRUPT: 0.7 * 0.8 * 0.1, Fate.RETURNS: 0.7 * 0.8 * 0.9}
    assert {fate: count / 6000 for fate, count in counts.items()} == pytest.approx(expected, abs=0.025)


def test_luck_is_each_clients_own_and_each_rates_own() -> None:
    together = {k: SOME.fates(1, "p", k, range(30)) for k in range(20)}
    for k, fates in together.items():
        assert SOME.fates(1, "p", k, range(30)) == fates
        assert SOME.fates(1, "p", k, range(0, 60, 2)).items() >= {i: f for i, f in fates.items() if i % 2 == 0}.items()
        dropped = {i for i, fate in fates.items() if fate is Fate.DROPPED}
        only = Faults(dropout_rate=0.3).fates(1, "p", k, range(30))
        assert {i for i, fate in only.items() if fate is Fate.DROPPED} == dropped
    assert len({tuple(fates.values()) for fates in together.values()}) == 20
    assert SOME.fates(2, "p", 0, range(30)) != together[0] != SOME.fates(1, "q", 0, range(30))


@pytest.mark.parametrize("rate", ["dropout_rate", "straggler_rate", "corrupt_rate"])
def test_where_nobody_is_left_exactly_one_returns(rate: str) -> None:
    fates = [Faults(**{rate: 0.999}).fates(1, "p", k, range(5)) for k in range(100)]
    returning = [[client for client, fate in one.items() if fate is Fate.RETURNS] for one in fates]
    assert {len(clients) for clients in returning} == {1}
    assert {client for (client,) in returning} == set(range(5))
    for k in range(50):
        needed = Faults(0.5, 0.5, 0.5).fates(1, "p", k, range(6), needed={5, 2})
        assert Fate.RETURNS in (needed[2], needed[5])


def test_a_corrupt_update_has_a_few_values_that_are_not_finite() -> None:
    update = {"w": torch.ones(4, 5), "b": torch.ones(1)}
    broken = [corrupted(update, generator(k)) for k in range(20)]
    assert is_finite(update)
    assert not any(map(is_finite, broken))
    assert {int(sum(v.isnan().sum() for v in b.values())) for b in broken} <= {1, 2, 3}


# A round.


def test_rates_of_zero_are_a_federation_without_faults(
    make_federation: Make, toy_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(faults: Faults | None) -> tuple[object, ...]:
        sets, federation = synthetic_sets(toy_clients), make_federation(faults=faults)
        result, infos = train(federation, toy_clients, replace(TRAIN, rounds=3), synthetic=sets)
        tensors = [*result.state.values(), *(s.images for s in sets.values())]
        seen = [(i.participants, i.loss, i.matching_distance) for i in infos]
        return [t.tolist() for t in tensors], without_seconds(result.cost), seen

    plain = ended(None)
    # Rates that never strike go the long way, with all that the server then checks.
    assert ended(Faults(*[1e-12] * 3)) == plain
    monkeypatch.setattr("quickdrop_bench.federation.faults._draws", None)
    assert ended(Faults()) == plain
    assert not COUNTERS & plain[1].metrics().keys()  # type: ignore[attr-defined]


def test_who_drops_out_computes_nothing(make_federation: Make, toy_clients: Clients) -> None:
    """Reading the data of client 0 raises, which a warm-up pass would do as well."""
    federation = make_federation(faults=Scripted(dropout_rate=0.5, script={0: Fate.DROPPED}))
    synthetic, untouched = synthetic_sets(toy_clients), synthetic_sets(toy_clients)
    clients = {**toy_clients, 0: Guarded(toy_clients[0], set(range(45)))}
    result, seen = train(federation, clients, synthetic=synthetic)
    present = {i: toy_clients[i] for i in (1, 2)}
    others, _ = train(make_federation(), present, synthetic=synthetic_sets(present))
    assert equal(result.state, others.state)
    assert torch.equal(synthetic[0].images, untouched[0].images)
    assert {(i.participants, i.dropped, i.late, i.rejected) for i in seen} == {((1, 2), (0,), (), ())}
    assert result.cost.dropouts == 8
    assert result.cost.upload_bytes == others.cost.upload_bytes


@pytest.mark.parametrize("fate", [Fate.LATE, Fate.CORRUPT])
def test_who_is_late_or_corrupt_computes_and_is_not_averaged(
    fate: Fate, make_federation: Make, toy_clients: Clients
) -> None:
    federation = make_federation(faults=Scripted(0, 0.5, 0.5, script={0: fate}))
    synthetic, untouched = synthetic_sets(toy_clients), synthetic_sets(toy_clients)
    recorded: list[int] = []
    result, (info,) = train(
        federation, toy_clients, ONE, synthetic=synthetic, record=lambda k, client, *_: recorded.append(client)
    )
    start = federation.fresh_state(1, "init")
    updates = updates_of(federation, toy_clients, start, ONE)
    assert_close(result.state, plus_weighted(start, updates, {1: 12 / 21, 2: 9 / 21}))
    assert not torch.equal(synthetic[0].images, untouched[0].images)
    assert recorded == [1, 2]
    late, rejected = ((0,), ()) if fate is Fate.LATE else ((), (0,))
    assert (info.participants, info.dropped, info.late, info.rejected) == ((1, 2), (), late, rejected)
    cost, whole = result.cost, train(make_federation(), toy_clients, ONE)[0].cost
    assert (cost.stragglers, cost.rejected_updates, cost.dropouts) == (len(late), len(rejected), 0)
    assert cost.sample_gradients == whole.sample_gradients
    assert cost.upload_bytes == whole.upload_bytes * (2 if late else 3) / 3
    assert cost.seconds > 0


def test_every_round_averages_those_who_returned_in_any_order(make_federation: Make, toy_clients: Clients) -> None:
    federation = make_federation(faults=SOME)
    result, seen = train(federation, toy_clients, replace(TRAIN, rounds=20))
    assert len(seen) == 20
    for info in seen:
        groups = (info.participants, info.dropped, info.late, info.rejected)
        assert sorted(sum(groups, ())) == [0, 1, 2]
        assert info.participants
    assert all(any(getattr(info, kind) for info in seen) for kind in ("dropped", "late", "rejected"))
    counts = {kind: sum(len(getattr(i, kind)) for i in seen) for kind in ("dropped", "late", "rejected")}
    cost = result.cost
    assert (cost.dropouts, cost.stragglers, cost.rejected_updates) == tuple(counts.values())
    assert {n: cost.metrics()[n] for n in COUNTERS} == {n: asdict(cost)[n] for n in COUNTERS}
    model = sum(v.numel() for v in result.state.values()) * 4
    assert cost.upload_bytes == model * (sum(len(i.participants) for i in seen) + counts["rejected"])
    backward = dict(reversed(toy_clients.items()))
    assert equal(train(federation, backward, replace(TRAIN, rounds=20))[0].state, result.state)


def poisoned(clients: Clients, *who: int) -> Clients:
    images = clients[0].images.clone()
    for client in who:
        images[clients[client].rows] = torch.nan
    return {i: LabelledSet(images, d.labels, d.rows) for i, d in clients.items()}


def test_a_real_non_finite_update_is_rejected_too(make_federation: Make, toy_clients: Clients) -> None:
    federation = make_federation(faults=Faults(corrupt_rate=1e-12))
    result, seen = train(federation, poisoned(toy_clients, 1))
    others, _ = train(make_federation(), {i: toy_clients[i] for i in (0, 2)})
    assert not result.diverged
    assert_close(result.state, others.state)  # a stack of two rounds otherwise than one of three
    assert {i.rejected for i in seen} == {(1,)}
    assert result.cost.rejected_updates == 8
    assert train(make_federation(faults=Faults(dropout_rate=1e-12)), poisoned(toy_clients, 1))[0].diverged
    nobody, seen = train(federation, poisoned(toy_clients, 0, 1, 2))
    assert (nobody.diverged, seen, nobody.cost.rounds, nobody.cost.rejected_updates) == (True, [], 1, 3)
    assert equal(nobody.state, federation.fresh_state(1, "init"))

    def explode(k: int, client: int, before: State, after: State) -> State:
        return {n: v * (torch.inf if client == 1 else 1) for n, v in after.items()}

    result, seen = train(federation, toy_clients, transform=explode)
    assert {i.rejected for i in seen} == {(1,)}
    assert not result.diverged


def test_continuing_under_faults_equals_running_through(make_federation: Make, toy_clients: Clients) -> None:
    federation = make_federation(faults=SOME)
    whole, parts = synthetic_sets(toy_clients), synthetic_sets(toy_clients)
    through, _ = train(federation, toy_clients, synthetic=whole)
    first, _ = train(federation, toy_clients, replace(TRAIN, rounds=3), synthetic=parts)
    rest, seen = train(federation, toy_clients, synthetic=parts, start=first)
    assert [i.round for i in seen] == [3, 4, 5, 6, 7]
    assert equal(through.state, rest.state)
    assert all(torch.equal(whole[i].images, parts[i].images) for i in whole)
    assert without_seconds(rest.cost) == without_seconds(through.cost)


# Methods.


def on_trained(make: Make, clients: Clients, level: str) -> Context:
    """A request on a model that was trained without faults."""
    return recorded(asked(make(), clients, level, training=TRAIN))[0]


def test_the_update_history_has_what_was_averaged(make_federation: Make, toy_clients: Clients) -> None:
    """FedEraser replays rounds with whoever was recorded then, and has faults of its own."""
    federation = make_federation(faults=SOME)
    _, seen = train(federation, toy_clients)
    context = recorded(asked(federation, toy_clients, "class", training=TRAIN))[0]
    assert context.history is not None
    assert context.history.participants == {i.round: list(i.participants) for i in seen}
    assert any(len(i.participants) < 3 for i in seen)
    replayed: list[RoundInfo] = []
    watch = SimpleNamespace(on_round_end=lambda federation, info: replayed.append(info))
    federation.fabric._callbacks.append(watch)
    result = FedEraser().unlearn(context)
    for info, trained in zip(replayed, seen, strict=True):
        chosen = {*info.participants, *info.dropped, *info.late, *info.rejected}
        assert chosen == set(trained.participants)
    assert is_finite(result.state)
    assert result.cost.dropouts + result.cost.stragglers + result.cost.rejected_updates > 0


@pytest.mark.parametrize(
    ("script", "weights"),
    [
        ({1: Fate.DROPPED}, {0: 24 / 33, 2: 9 / 33}),
        ({0: Fate.LATE}, {1: 1.2 / 21, 2: 1 - 1.2 / 21}),
        ({0: Fate.CORRUPT}, {1: 1.2 / 21, 2: 1 - 1.2 / 21}),
        ({0: Fate.DROPPED, 2: Fate.DROPPED}, {1: 0.1}),
    ],
)
def test_s2u_scales_by_the_shares_of_those_who_return(
    script: dict[int, Fate], weights: dict[int, float], make_federation: Make, toy_clients: Clients
) -> None:
    """Without the leaver, the others are as in FedAvg; without client 0, p_ℓ = 12/21 and α = (1 − 1.2/21)/(9/21); with
    none but the leaver, a small step."""
    method = S2U(beta=0.1, recover_rounds=0, unlearn_lr=0.1)
    context = on_trained(make_federation, toy_clients, "client")
    updates = updates_of(context.federation, toy_clients, context.state, method.scaling(TRAIN))
    federation = make_federation(faults=Scripted(0.1, 0.1, 0.1, script=script))
    result = method.unlearn(replace(context, federation=federation))
    assert_close(result.state, plus_weighted(context.state, updates, weights))


def test_fu_mp_scores_with_those_who_return(make_federation: Make, toy_clients: Clients) -> None:
    context = on_trained(make_federation, toy_clients, "class")
    script = {0: Fate.LATE, 1: Fate.CORRUPT}
    faulty = replace(context, federation=make_federation(faults=Scripted(0.1, 0.1, 0.1, script=script)))
    result = FuMp(prune_ratio=0.5).unlearn(faulty)
    alone = FuMp(prune_ratio=0.5).unlearn(replace(context, clients={2: context.clients[2]}))
    assert equal(result.state, alone.state)
    cost = result.cost
    assert (cost.dropouts, cost.stragglers, cost.rejected_updates, cost.sample_forwards) == (0, 1, 1, 45)
    assert cost.upload_bytes == 2 * alone.cost.upload_bytes


def test_fu_mp_hears_a_client_that_holds_the_class(make_federation: Make, toy_clients: Clients) -> None:
    """Only client 2 has class 1, and most clients drop out."""
    clients = {i: d if i == 2 else d.with_classes({1}, keep=False) for i, d in toy_clients.items()}
    context = on_trained(make_federation, clients, "class")
    context = replace(context, federation=make_federation(faults=Faults(dropout_rate=0.9)))
    assert 1 in measurable_data(context)[2].own_labels()
    for seed in range(5):
        assert not equal(FuMp(prune_ratio=0.5).unlearn(replace(context, seed=seed)).state, context.state)


# Options, checkpoints, files.


def test_rates_are_options_that_leave_old_hashes_alone() -> None:
    assert not set(NO_RATES) & FederationSpec().resolved().keys()
    faulty = FederationSpec(dropout_rate=0.25)
    assert {n: faulty.resolved()[n] for n in NO_RATES} == dict(zip(NO_RATES, (0.25, 0.0, 0.0), strict=True))
    assert faulty.faults == Faults(0.25)
    assert FederationSpec().hash("d", 1, "p") == FederationSpec(corrupt_rate=0).hash("d", 1, "p")
    assert FederationSpec().hash("d", 1, "p") != faulty.hash("d", 1, "p")


@pytest.mark.slow
def test_a_table_under_faults_has_the_counters(run: Run) -> None:
    code, out, err = run("table", "2", *TINY, *RATES)
    assert code == 0
    rows = read_rows(Path("results/quick/table2/rows.jsonl"))
    assert set(rows["metric"]) >= COUNTERS
    found = rows[rows["metric"].isin(COUNTERS) & (rows["stage"] == "total")]
    assert (found["value"] > 0).all()
    assert {"retrain-or", "sga-or", "quickdrop"} <= set(found["method"])
    folder = next(Path("artifacts").glob("[!.]*"))
    history = pd.read_csv(folder / "history.csv")
    failed, cost = history[["dropped", "late", "rejected"]].sum(), artifacts.load(folder, torch.device("cpu")).cost
    assert failed.tolist() == [cost.dropouts, cost.stragglers, cost.rejected_updates]
    assert any(failed)
    assert all(f" {kind}" in err for kind, count in failed.items() if count)
    computed = history[["participants", "late", "rejected"]].to_numpy().sum()
    gradients = rows[(rows["metric"] == "original_gradients") & (rows["stage"] == "fl-training")]
    assert float(gradients["value"].iloc[0]) == pytest.approx(2 * computed / 3)
    code, again, err = run("table", "2", *TINY, *RATES)
    assert (code, again) == (0, out)
    assert "round" not in err
