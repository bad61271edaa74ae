"""The commands and their options, as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from functools import cache
from inspect import cleandoc
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.harness.federation_spec import MOST, FederationSpec
from quickdrop_bench.harness.presets import presets
from quickdrop_bench.harness.run_spec import PROTOCOLS
from quickdrop_bench.methods import METHODS

PROGRAM = "quickdrop-bench"

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

AXES = {"scale": "scales", "alpha": "alphas", "clients": "clients", "fine_tune": "fine_tunes"}
"""Fields of a federation that can be swept, and the option that lists their values."""


@dataclass(frozen=True)
class Option:
    """An option of the command line and key of configuration files.

    Attributes:
        name: as it is typed, e.g. ``--data-dir``; without dashes the command's argument.
        type: of its value; a ``bool`` that is False by default is a flag.
        default: where neither a preset nor the user says anything.
        help: one line.
        key: in files and in code; by default as it is typed.
    """

    name: str
    type: Any
    default: Any
    help: str
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name.removeprefix("--").replace("-", "_"))

    @property
    def is_flag(self) -> bool:
        """Whether it is typed without a value."""
        return self.type is bool and self.default is False

    def check(self, value: Any) -> None:
        """Raise :class:`BadInput` for what the parser lets pass: no value, no flag, a giant number."""
        if value is None and self.default is not None and NoneType not in get_args(self.type):
            raise BadInput(self.name, "null", "a value is needed")
        if self.is_flag and not isinstance(value, bool):
            raise BadInput(self.name, value, "true or false is needed")
        if type(value) is int and value > MOST:
            raise BadInput(self.name, value, f"a whole number of at most {MOST} is needed")


def spelled(key: str) -> str:
    """A key as the option that a user types."""
    return next((o.name for o in _RENAMED if o.key == key), f"--{key.replace('_', '-')}")


@cache
def _of_fields(cls: type, prefix: str = "") -> tuple[Option, ...]:
    """An option per field of a dataclass; what it does stands beside the field or in the class's docstring."""
    hints, described = get_type_hints(cls), _described(cls)

    def option(field: Field[Any]) -> Option:
        text = field.metadata.get("help") or described.get(field.name, f"see {cls.__name__}")
        name, key = f"--{prefix}{field.name}".replace("_", "-"), f"{prefix}{field.name}".replace("-", "_")
        return Option(name, hints[field.name], field.default, text, key)

    return tuple(option(field) for field in fields(cls))


def _described(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each attribute, on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
            found[name] = " ".join(text.split()).rstrip(".")
    return found


_CLASS = "by name, or by position from 0 where no name is a number; 9,3: one after the other"
"""A number is a name wherever classes are named by numbers."""

_SAMPLES = "how many random training images, or a file that lists them, client,row a line"

FEDERATION = _of_fields(FederationSpec)
"""What decides a federation and its training."""

SHARED = (
    Option(
        "--preset", str | None, None, f"one of {', '.join(presets())} (default: paper if a GPU is found, else quick)"
    ),
    Option("--data-dir", Path, Path("data"), "folder with the data sets"),
    Option("--seeds", int | str, "5", "how many seeds, or which, as 1,2,3; with a comma behind it, 7, is one seed"),
)
RESULTS = Option("--results-dir", Path, Path("results"), "where rows, tables and figures go")
_STARTED = "(default: 1, or what torchrun or srun started)"
WANDB = (
    Option("--wandb", str, "auto", "log to W&B: auto (online with an API key), online, offline or disabled"),
    Option("--wandb-project", str | None, None, "W&B project (default: quickdrop-bench)"),
    Option("--wandb-entity", str | None, None, "W&B user or team (default: your own)"),
)
MACHINE = (
    Option("--artifacts-dir", Path, Path("artifacts"), "where trained federations go"),
    Option("--accelerator", str, "auto", "auto, cpu or cuda, as Fabric calls them"),
    Option("--devices", int | None, None, f"processes per machine that share the clients {_STARTED}"),
    Option("--num-nodes", int | None, None, f"machines {_STARTED}"),
    Option("--precision", str, "32-true", f"one of {', '.join(PRECISIONS)}"),
    Option("--tf32", bool, False, "on a GPU: let float32 products round to TF32, which is faster"),
    *WANDB,
    Option("--wandb-images", bool, False, "upload synthetic images too; they may reveal data"),
)
RUNS = (
    Option("--methods", str, "", "methods, as a,b (default: those that it is defined with)"),
    Option("--class", str, "9", f"class to forget, {_CLASS}", "forget_class"),
    Option(
        "--client",
        str,
        "0",
        "client to forget, from 0, in tables about clients; a backdoored one, if there is one",
        "forget_client",
    ),
    Option("--samples", str, "100", f"in tables about samples: {_SAMPLES}", "forget_samples"),
    Option(
        "--protocol",
        str,
        "preset",
        f"where methods' settings come from: {', '.join(PROTOCOLS)} (both letters: the paper), or several as a,b",
    ),
    Option("--patience", int | None, None, "stop a stage of descent after this many rounds without progress"),
    Option("--force", bool, False, "measure again what was measured already"),
    Option("--jobs", int, 1, "seeds and cells at a time, each in a process of its own"),
    Option("--dry-run", bool, False, "show the plan with an estimate of time, and stop"),
)
SWEPT = (
    Option("--scales", str | None, None, "scales s to sweep, as 1,10,100"),
    Option("--alphas", str | None, None, "concentrations α to sweep, as 0.1,1"),
    Option("--clients", int | str, 10, "number of clients N, or several as 10,20"),
    Option("--fine-tunes", str | None, None, "fine-tuning F to sweep, as 0,10"),
    Option("--datasets", str | None, None, "data sets to sweep, as digits,mnist"),
    Option("--models", str | None, None, "models to sweep, as convnet,lenet5"),
)
NAMED = (
    Option("run", str, None, "a trained federation: latest, its folder, its name or the beginning of it"),
    Option("--artifacts-dir", Path, Path("artifacts"), "where trained federations are"),
    Option("--json", bool, False, "print JSON, for scripts"),
)
VERSION = Option("--version", int | None, None, "model version (default: the current one)")
SERVED_ON = (
    Option("--data-dir", Path, Path("data"), "folder with the data sets"),
    Option("--accelerator", str, "cpu", "auto, cpu or cuda, as Fabric calls them"),
    Option("--precision", str | None, None, f"one of {', '.join(PRECISIONS)} (default: the training's)"),
)
REQUEST = (
    *NAMED,
    Option("--preset", str | None, None, "preset with the methods' settings (default: the training's)"),
    Option("--class", str, "", f"the class, {_CLASS}", "forget_class"),
    Option("--client", str, "", "the client, from 0; 3,5: one after the other", "forget_client"),
    Option("--samples", str, "", _SAMPLES, "forget_samples"),
    Option("--method", str, "quickdrop", "an unlearning method, see the command 'methods'"),
    Option("--absent", int | str, "", "clients that cannot take part now, as 1,4"),
    Option(
        "--from-version",
        int | None,
        None,
        "start from this version if newer ones are damaged; what they forgot is back",
    ),
    Option("--dry-run", bool, False, "show participants and cost, and stop"),
    *SERVED_ON,
    Option("--wandb", str, "disabled", WANDB[0].help),
    *WANDB[1:],
)
TABLE = Option(
    "number", int, None, "1 to 6 as in the paper, 7 to 10 with all methods, or your own in benchmarks/tables"
)
FIGURE = Option("number", int, None, "2 to 6 as in the paper, 7 with all methods")
DETAILS = Option("--details", bool, False, "show all that is known")
STAGES = Option("--details", bool, False, "print every stage, not one line a method")
NUMBERS = Option("--details", bool, False, "print all numbers")
_RENAMED = RUNS[1:4]


@dataclass(frozen=True)
class Command:
    """What a command is and takes.

    Attributes:
        summary: one line.
        options: its own.
        methods: whether it takes the settings of all methods too.
    """

    summary: str
    options: tuple[Option, ...]
    methods: bool = False

    @property
    def has_preset(self) -> bool:
        """Whether a preset sets its options; commands on a trained federation take the methods' settings alone."""
        return SHARED[0] in self.options


_TRAINS = (*SHARED, *FEDERATION, *MACHINE)
_SWEEPS = (*SHARED, RESULTS, *(o for o in FEDERATION if o.name != "--clients"), *MACHINE, *RUNS, *SWEPT)

COMMANDS = {
    "table": Command(
        "measure what a table still lacks, and print it", (TABLE, RESULTS, *_TRAINS, *RUNS, STAGES), methods=True
    ),
    "figure": Command("measure what a figure still lacks, and draw it", (FIGURE, *_SWEEPS, NUMBERS), methods=True),
    "sweep": Command("measure and draw over scales, alphas, clients, data sets, models", _SWEEPS, methods=True),
    "train": Command(
        "train a federation and save it, to serve requests on it",
        (*_TRAINS, Option("--resume", bool, False, "go on with what was begun; refuse to begin anew")),
    ),
    "unlearn": Command("forget a class, a client or samples on a trained federation", REQUEST, methods=True),
    "relearn": Command("learn again what was forgotten", REQUEST, methods=True),
    "evaluate": Command("print the accuracies of a trained federation's model", (*NAMED, VERSION, *SERVED_ON)),
    "show": Command(
        "print what a trained federation is, and what it forgot",
        (*NAMED, Option("--recover-log", bool, False, "rebuild a lost requests.jsonl from the versions")),
    ),
    "export": Command(
        "write its model as safetensors, TorchScript or ONNX",
        (
            *NAMED,
            VERSION,
            Option("--format", str, "safetensors", "safetensors, torchscript or onnx; or as --output ends"),
            Option("--output", Path | None, None, "file to write (default: in the run's folder)"),
        ),
    ),
    "distribution": Command("draw and print which client holds which classes", (*SHARED, RESULTS, *FEDERATION)),
    "report": Command(
        "write one HTML page over all that was measured",
        (
            Option("--results-dir", Path, Path("results"), "folder with the rows"),
            Option("--output", Path | None, None, "file to write (default: report.html in the results folder)"),
        ),
    ),
    "dashboard": Command(
        "write a W&B workspace with panels for these runs",
        (
            WANDB[1],
            Option("--wandb-entity", str | None, None, "W&B user or team of the project (default: $WANDB_ENTITY)"),
            Option("--output", Path, Path("dashboard.json"), "file for the definition"),
            Option("--publish", bool, False, "save it on W&B too; needs a key and a network"),
        ),
    ),
    "methods": Command("list the unlearning methods", (DETAILS,)),
    "metrics": Command("list the metrics", (DETAILS,)),
    "models": Command("list the models", (DETAILS,)),
    "datasets": Command("list the data sets", (DETAILS,)),
    "presets": Command("list the presets", (DETAILS,)),
}


def declared(command: str) -> dict[str, Option]:
    """All options of a command by key, those of methods as ``quickdrop.unlearn_lr``."""
    own = COMMANDS[command]
    return {option.key: option for option in (*own.options, *(of_methods(*METHODS) if own.methods else ()))}


def of_methods(*names: str) -> Iterator[Option]:
    """The settings of some methods."""
    for name in names:
        yield from _of_fields(METHODS[name], f"{name}.")
