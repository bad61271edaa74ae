"""FedQUIT against KL divergence written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.fed_quit import FedQuit, lowered, soft_labelled
from tests.asked import asked, guarded
from tests.by_hand import Loss, assert_close, descended, equal, minus, network, plus_weighted, shares
from tests.conftest import Clients, Make


def test_the_teacher_denies_the_label_and_keeps_the_rest() -> None:
    """q_y is the least, and the ratios of the others are the model's."""
    z, y = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5
    data = LabelledSet.of(torch.zeros(20, 1, 1, 1), y)
    q = soft_labelled({0: data}, {0: z}, 1.0)[0].labels
    torch.testing.assert_close(q.sum(1), torch.ones(20))
    p, others = z.softmax(1), F.one_hot(y, 5) == 0
    torch.testing.assert_close(q[~others], q.amin(1))
    ratios = (q / p)[others].view(20, 4)
    torch.testing.assert_close(ratios, ratios[:, :1].expand(20, 4))
    already = lowered(z, z.argmin(1))
    assert torch.equal(already, z)  # no signal
    # Cross-entropy with q for labels is KL(q ‖ p) and a constant: zero if and only if the student is q.
    entropy = -(q * q.log()).sum(1).mean()
    torch.testing.assert_close(F.cross_entropy(q.log(), q) - entropy, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert F.cross_entropy(z, q) > entropy + 1e-3


def divergence_from_teacher(state: State, data: LabelledSet) -> Loss:
    """KL(teacher ‖ student): the teacher's logits are the model's, the true class's as low as the least."""
    model = network()
    model.load_state_dict(state)
    images, labels = data.take(torch.arange(len(data)))
    teacher = model(images).detach()
    teacher[torch.arange(len(data)), labels] = teacher.min(1).values
    return lambda outputs, _: F.kl_div(outputs.log_softmax(1), teacher.softmax(1), reduction="batchmean")


@pytest.mark.parametrize("level", ["client", "class"])
def test_full_batches_by_hand(level: str, make_federation: Make, toy_clients: Clients) -> None:
    """Holders take three steps of KL descent from θ, weighted by their forget samples; nothing else is read."""
    context = asked(make_federation(), toy_clients, level)
    forget = {i: z for i, z in context.forget_data().items() if len(z)}
    others = set(range(45)) - {row for z in forget.values() for row in z.rows.tolist()}
    result = FedQuit(unlearn_local_steps=3, unlearn_lr=0.1).unlearn(guarded(context, others))
    start = context.state
    ends = {i: descended(start, z, 3, 0.1, divergence_from_teacher(start, z)) for i, z in forget.items()}
    updates = {i: minus(end, start) for i, end in ends.items()}
    assert_close(result.state, plus_weighted(start, updates, shares(forget)), atol=1e-6)
    assert result.cost.sample_forwards == result.cost.data_size == sum(map(len, forget.values()))


def test_without_rounds_nothing_happens(make_federation: Make, toy_clients: Clients) -> None:
    context = asked(make_federation(), toy_clients)
    assert equal(FedQuit(unlearn_rounds=0).unlearn(context).state, context.state)
