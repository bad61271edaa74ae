"""NoT: negate the first layer's weights, then recover (Khalil et al., CVPR 2025, arXiv 2503.05657)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Clock, Storage
from quickdrop_bench.core.errors import Unsupported
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery, Relearning

if TYPE_CHECKING:
    from torch import nn

    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context


@METHODS.register("not")
@dataclass(frozen=True)
class Not(Recovery, Relearning):
    """θ_w ← −θ_w for the weight w of the first convolution on the server, which breaks the co-adaptation of the layers.

    Recovery repairs what is retained. The paper negates an antichain of layers without the last one: in a network whose
    layers follow each other, and in a ResNet, that is the first convolution; its bias stays. The paper serves clients,
    classes and samples. The layer is found by its type: a third-party code looks for "conv" in the parameter's name and
    silently negates nothing where names differ; it also keeps the round that does best on test data.

    Attributes:
        recover_rounds: rounds of recovery; negation leaves a model at chance, so it takes more than others.
    """

    title: ClassVar[str] = "NoT"
    color: ClassVar[str] = "#882255"
    order: ClassVar[int] = 830
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"retain-data"})
    summary: ClassVar[str] = "negates the first convolution's weights, then recovers"
    search: ClassVar[Search] = {"recovery": {"recover_rounds": (2, 5, 10), **RECOVERY_SEARCH}}

    recover_rounds: int = 10

    def unlearn(self, context: Context) -> StageResult:
        """Negate on the server; no data are read.

        Raises:
            Unsupported: the model has no convolution.
        """
        clock, name = Clock(context.federation.fabric.device), first_convolution(context.federation.model.module)
        if name is None:
            raise Unsupported("--methods", "not", "the model has no convolution whose weights could be negated")
        with clock.running():
            state: State = {n: -v if n == f"{name}.weight" else v for n, v in context.state.items()}
        return StageResult(state, clock.cost)

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()


def first_convolution(model: nn.Module) -> str | None:
    """Name of the first two-dimensional convolution of a model that lists its modules as they run."""
    from torch import nn

    return next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
