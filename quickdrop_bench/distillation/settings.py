"""The constants of fine-tuning; no torch is imported for them."""

from __future__ import annotations

from dataclasses import dataclass

from quickdrop_bench.core.errors import positive


@dataclass(frozen=True)
class FineTuning:
    """What is done in each random initialisation; F, the number of initialisations, is the caller's.

    Attributes:
        steps: matching steps per initialisation, at least 1 (paper §4.1: 50).
        epochs: epochs of training the network on S_i after each matching step but the last, at least 0. The paper
            does not say; 10 is what Zhao et al.'s code takes for 50 images per class.
        batch_size: most real images per class and matching step, and the mini-batch of the training on S_i, at
            least 1 (Zhao et al.: 256 for both).
        lr: learning rate of the network, above 0; plain SGD (Zhao et al.: 0.01).

    Raises:
        BadInput: a value is out of range.
    """

    steps: int = 50
    epochs: int = 10
    batch_size: int = 256
    lr: float = 0.01

    def __post_init__(self) -> None:
        positive("--fine-tune-steps", self.steps, at_least=1)
        positive("--fine-tune-epochs", self.epochs, at_least=0)
        positive("--fine-tune-batch-size", self.batch_size, at_least=1)
        positive("--fine-tune-lr", self.lr)
