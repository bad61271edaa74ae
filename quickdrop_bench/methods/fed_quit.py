"""FedQUIT: distil a teacher that denies the true label into the student (Mora et al.)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Cost, Storage
from quickdrop_bench.core.errors import positive
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search, StageResult
from quickdrop_bench.methods.stages import LOCAL_STEPS, RECOVERY_SEARCH, Recovery, Relearning, stage_phase

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.federation.phase import Phase
    from quickdrop_bench.methods.context import Context


@METHODS.register("fedquit")
@dataclass(frozen=True)
class FedQuit(Recovery, Relearning):
    """Clients with forget data minimise mean KL(q ‖ softmax f_θ(x)) on them, from the global model.

    The teacher is the global model, frozen, with the logit of the true class lowered to its least: q = softmax(z/τ),
    z_y ← min_c z_c. KL(q ‖ p) is the cross-entropy of the soft labels q up to a constant, so clients train as ever,
    with q for labels. An image whose true class has the least logit already gives no signal. The paper forgets clients
    and samples; for a class every holder distils on its images of it, weighted by their number. The released code's
    shipped configuration names a loss that it does not know, and its recovery stops on test accuracy.

    Attributes:
        unlearn_rounds: rounds of distillation (paper: 1).
        unlearn_local_steps: local steps T; without it the training's (paper: one pass).
        unlearn_lr: learning rate η (the released code uses Adam).
        temperature: of the teacher, τ > 0 (paper: 1).
    """

    title: ClassVar[str] = "FedQUIT"
    color: ClassVar[str] = "#332288"
    order: ClassVar[int] = 860
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "distils a teacher that denies the forget set's labels"
    search: ClassVar[Search] = {
        "unlearning": {"unlearn_local_steps": LOCAL_STEPS, "unlearn_lr": (0.02, 0.05, 0.2)},
        "recovery": RECOVERY_SEARCH,
    }

    unlearn_rounds: int = 1
    unlearn_local_steps: int | None = None
    unlearn_lr: float = 0.01
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("fedquit.temperature", self.temperature)

    def distilling(self, training: Phase) -> Phase:
        """The unlearning phase: all clients with forget data take part."""
        return stage_phase(training, "unlearning", self.unlearn_rounds, self.unlearn_lr, self.unlearn_local_steps)

    def unlearn(self, context: Context) -> StageResult:
        """Descent to the teacher's soft labels, which every holder computes first in a forward pass."""
        from quickdrop_bench.federation.passes import logits

        forget = {i: z for i, z in context.forget_data().items() if len(z)}
        if not forget or not self.unlearn_rounds:
            return StageResult(context.state, Cost())
        found, cost = logits(context.federation, context.state, forget)
        data = soft_labelled(forget, found, self.temperature)
        # Not context.run: its patience is for descents that are to converge.
        phase, on_round = self.distilling(context.training), context.on_round
        result = context.federation.run(context.state, data, phase, context.seed, on_round=on_round)
        return StageResult(result.state, result.cost + cost, result.diverged)

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()


def soft_labelled(
    data: Mapping[int, LabelledSet], teacher: Mapping[int, Tensor], temperature: float
) -> dict[int, LabelledSet]:
    """Clients' sets with the teacher's soft labels in place of their own.

    Args:
        data: by client, not empty.
        teacher: (n, C) logits of the global model by client.
        temperature: τ.
    """
    from quickdrop_bench.data.labelled import LabelledSet

    some = next(iter(data.values()))
    soft = some.images.new_zeros(len(some.labels), next(iter(teacher.values())).shape[1])
    for client, z in data.items():
        soft[z.rows] = (lowered(teacher[client], z.own_labels()) / temperature).softmax(1)
    return {client: LabelledSet(z.images, soft, z.rows) for client, z in data.items()}


def lowered(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, C) logits in which the (n,) true class has the least of its row."""
    return logits.scatter(1, labels[:, None], logits.amin(1, keepdim=True))
