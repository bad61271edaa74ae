"""What a federation is and how it is trained, with the defaults of its options, and the hash that identifies it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from inspect import getfile
from pathlib import Path
from typing import Any

from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.data.backdoor import Backdoor
from quickdrop_bench.data.datasets import DATASETS
from quickdrop_bench.distillation.settings import FineTuning
from quickdrop_bench.federation.faults import Faults
from quickdrop_bench.harness.sources import digest, source_digest
from quickdrop_bench.models import MODELS, Model

HARNESS = Path(__file__).parent

TRAINING = (HARNESS / "training.py", HARNESS / "fine_tuning.py", HARNESS.parent / "data" / "datasets.py")
"""Code that decides what a trained federation is, with all that it imports."""

LEAST = {
    "min_client_size": 0,
    "clients": 1,
    "width": 1,
    "depth": 1,
    "rounds": 1,
    "local_steps": 1,
    "batch_size": 1,
    "record_every": 0,
    "groups": 1,
    "image_steps": 0,
    "synthetic_batch_size": 1,
    "fine_tune": 0,
    "fine_tune_steps": 1,
    "fine_tune_epochs": 0,
    "fine_tune_batch_size": 1,
}
"""Fields that count something."""

MOST = 10**9
"""What any of them, and any other whole number of an option, may be: products of two still are numbers to torch."""

ORIGINALS = frozenset({"forget-data", "retain-data"})
"""What methods need of the data that the federation was trained on."""

MODEL_OPTIONS = ("width", "depth", "norm")
"""Fields that go to the model, if it has such options."""

IN_COLUMNS = ("dataset", "clients", "alpha", "iid")
"""Fields that every row states in columns of their own."""


def _option(default: Any, text: str, of: str = "training") -> Any:
    return field(default=default, metadata={"help": text, "of": of})


@dataclass(frozen=True)
class FederationSpec:
    """A federation and its training; every field is an option of the command line and a key of the presets.

    The defaults are the paper's (§4.1). What a field is ``of`` decides where it is used: ``partition``, ``training``,
    ``distillation`` or ``fine-tuning``.
    """

    dataset: str = _option("cifar10", "data set, see the command 'datasets'", "partition")
    image_size: int | None = _option(None, "resize imagefolder images to this many pixels", "partition")
    clients: int = _option(10, "number of clients N", "partition")
    alpha: float = _option(
        0.1, "Dirichlet α > 0 of the partition; the smaller, the fewer classes a client holds", "partition"
    )
    iid: bool = _option(False, "equal random parts in place of a Dirichlet partition", "partition")
    min_client_size: int = _option(10, "fewest images per client; 0 accepts empty clients", "partition")
    model: str = _option("convnet", "model, see the command 'models'")
    width: int = _option(128, "ConvNet: filters W per block")
    depth: int = _option(3, "ConvNet: number of blocks D")
    norm: str = _option("instance", "ConvNet: normalisation, one of instance, layer, none")
    rounds: int = _option(200, "FL rounds K")
    local_steps: int = _option(50, "local steps T per client and round")
    batch_size: int = _option(256, "mini-batch size |B|")
    lr: float = _option(0.01, "learning rate η_θ of FL training")
    participation: float = _option(1.0, "share of the clients that take part in a training round")
    record_every: int = _option(0, "keep the clients' updates of every n-th round, for FedEraser; 0: of none")
    distill: bool = _option(True, "distil synthetic sets during training")
    scale: float = _option(100.0, "scale s: a class of n images gets ⌈n/s⌉ synthetic ones")
    groups: int = _option(
        1, "random groups within a client's class, each with ⌈n/s⌉ synthetic images of its own", "distillation"
    )
    image_steps: int = _option(1, "steps ς_S on the synthetic images per local step", "distillation")
    image_lr: float = _option(0.1, "learning rate η_S of the synthetic images", "distillation")
    image_momentum: float = _option(0.5, "momentum of these steps", "distillation")
    synthetic_batch_size: int = _option(256, "most synthetic images per class and local step, |B_S|", "distillation")
    fine_tune: int = _option(0, "random networks F on which to fine-tune the synthetic sets (paper, §3.3.2); 0: off")
    fine_tune_steps: int = _option(50, "fine-tuning: matching steps per network", "fine-tuning")
    fine_tune_epochs: int = _option(
        10, "fine-tuning: epochs of the network on S_i between matching steps", "fine-tuning"
    )
    fine_tune_batch_size: int = _option(256, "fine-tuning: real images per class and matching step", "fine-tuning")
    fine_tune_lr: float = _option(0.01, "fine-tuning: learning rate of the network", "fine-tuning")
    dropout_rate: float = _option(0.0, "share of a round's clients that miss it, below 1")
    straggler_rate: float = _option(0.0, "share of the updates that come too late, below 1")
    corrupt_rate: float = _option(0.0, "share of the updates that arrive broken and are rejected, below 1")
    backdoor: str = _option("", "a client with a backdoor in its images, as client=3,share=0.8,target=0")

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, float):  # 100 and 100.0 are one spec
                object.__setattr__(self, f.name, float(value))
            elif type(value) is not type(f.default) and (f.default is not None or type(value) is not int):
                raise BadInput(f"--{f.name.replace('_', '-')}", value, f"{f.type} is needed")
        if not self.iid:
            positive("--alpha", self.alpha)
        for name, least in LEAST.items():
            positive(f"--{name.replace('_', '-')}", getattr(self, name), at_least=least, at_most=MOST)
        if self.image_size is not None:
            positive("--image-size", self.image_size, at_least=1, at_most=1024)
        for name in ("lr", "fine_tune_lr"):
            positive(f"--{name.replace('_', '-')}", getattr(self, name))
        positive("--participation", self.participation, at_most=1)
        positive("--scale", self.scale, at_least=1)
        positive("--image-lr", self.image_lr, at_least=0)
        positive("--image-momentum", self.image_momentum, at_least=0, at_most=0.999)
        _ = self.faults, self.fine_tuning, self.architecture
        if planned := self.planned_backdoor:
            if planned.client >= self.clients:
                raise BadInput("--backdoor", self.backdoor, f"client must be between 0 and {self.clients - 1}")
            object.__setattr__(self, "backdoor", str(planned))  # however it was written, it is one spec
        if self.fine_tune and not self.distill:
            raise BadInput("--fine-tune", self.fine_tune, "it needs synthetic sets; leave --distill true")
        if self.fine_tune and self.groups > 1:
            raise BadInput(
                "--groups", self.groups, "synthetic sets of groups are not fine-tuned; leave out --fine-tune"
            )

    def check_images(self, count: int) -> None:
        """Raise :class:`BadInput` if not even one client could get its fewest images of so many."""
        if self.min_client_size > count:
            allowed = f"between 0 and {count // self.clients} for {self.clients} clients and {count} training images"
            raise BadInput("--min-client-size", self.min_client_size, allowed)

    @property
    def distribution(self) -> str:
        """``iid`` or ``dirichlet-<α>``, as in rows."""
        return "iid" if self.iid else f"dirichlet-{self.alpha:g}"

    @property
    def architecture(self) -> Model:
        """The model with its options."""
        return MODELS[self.model](**{name: getattr(self, name) for name in self.model_options})

    @property
    def model_options(self) -> list[str]:
        """Those of :data:`MODEL_OPTIONS` that the model has."""
        own = {f.name for f in fields(MODELS[self.model])}  # type: ignore[arg-type]
        return [name for name in MODEL_OPTIONS if name in own]

    @property
    def fine_tuning(self) -> FineTuning:
        """The constants of fine-tuning."""
        return FineTuning(self.fine_tune_steps, self.fine_tune_epochs, self.fine_tune_batch_size, self.fine_tune_lr)

    @property
    def faults(self) -> Faults:
        """How often clients fail, in training and in every stage of every method."""
        return Faults(self.dropout_rate, self.straggler_rate, self.corrupt_rate)

    @property
    def planned_backdoor(self) -> Backdoor | None:
        """The backdoor of one client, if there is one."""
        return Backdoor.parse(self.backdoor) if self.backdoor else None

    def resolved(self) -> dict[str, Any]:
        """The fields that decide the result, ready to be hashed and shown."""
        values = asdict(self)
        idle = {*MODEL_OPTIONS} - {*self.model_options}
        idle |= {"model"} if self.model == FederationSpec.model else set()  # what was trained before there were others
        values = {name: value for name, value in values.items() if name not in idle}
        if self.iid:
            del values["alpha"]
        if self.groups == 1:
            del values["groups"]
        if not self.distill:
            for name in ("image_steps", "image_lr", "image_momentum", "synthetic_batch_size"):
                del values[name]
        if not self.fine_tune:
            values = {name: value for name, value in values.items() if not name.startswith("fine_tune")}
        if not (faults := self.faults).possible:
            values = {name: value for name, value in values.items() if name not in vars(faults)}
        if not self.backdoor:
            del values["backdoor"]
        return values

    def setting(self, apart: Collection[str] = ()) -> dict[str, Any]:
        """The fields that runs must share to be averaged, but for those that have columns of their own in rows.

        Constants of fine-tuning are always among them: F = 0 stands on one curve with F > 0.

        Args:
            apart: further fields to leave out, which vary on purpose and have columns too.
        """
        values = {name: value for name, value in asdict(self).items() if name.startswith("fine_tune")}
        return {name: v for name, v in (values | self.resolved()).items() if name not in {*IN_COLUMNS, *apart}}

    def hash(self, data_fingerprint: str, seed: int, precision: str) -> str:
        """Identifies a trained federation: spec, data, seed, precision and the code that trains."""
        kinds = DATASETS[self.dataset], MODELS[self.model]
        return digest(
            {
                "spec": self.resolved(),
                "data": data_fingerprint,
                "seed": seed,
                "precision": precision,
                "source": source_digest(*TRAINING, *(Path(getfile(cls)) for cls in kinds)),
            }
        )


def kept(spec: FederationSpec, *, recorded: bool) -> frozenset[str]:
    """What methods may need that a federation keeps, with its clients' original data.

    Args:
        spec: of the federation.
        recorded: whether it kept an update history.
    """
    own = {"real-subset": True, "synthetic-sets": spec.distill, "update-history": recorded}
    return ORIGINALS | {name for name, there in own.items() if there}
