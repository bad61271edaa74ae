"""Options: from the command line and presets to frozen dataclasses."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.core.launcher import mark_children, started
from quickdrop_bench.data.datasets import DATASETS
from quickdrop_bench.federation.ranks import ClientParallel, is_first
from quickdrop_bench.harness.presets import presets
from quickdrop_bench.harness.spec import PROTOCOLS, FederationSpec, Rules
from quickdrop_bench.methods import METHODS, Method

__all__ = [
    "AXES",
    "add_common_options",
    "add_dashboard_options",
    "add_evaluate_options",
    "add_export_options",
    "add_figure_options",
    "add_no_options",
    "add_report_options",
    "add_request_options",
    "add_run_name",
    "add_run_options",
    "add_show_options",
    "add_sweep_options",
    "add_table_options",
    "add_train_options",
    "federation_spec",
    "make_fabric",
    "methods_of",
    "processes_of",
    "rules_of",
    "seeds_of",
]

AXES = {"scale": "scales", "alpha": "alphas", "clients": "clients", "fine_tune": "fine_tunes"}
"""Options of a federation that can be swept, and the option that lists their values."""

CLASS_HELP = "class to forget, by name or, where no class is named by a number, by position from 0"
"""A number is a name wherever classes are named by numbers."""

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def _add_fields(parser: ArgumentParser, cls: type, prefix: str, skip: tuple[str, ...] = ()) -> None:
    """One option per field of a frozen dataclass."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if field.name in skip:
            continue
        name = f"--{prefix}{field.name}".replace("_", "-")
        text = field.metadata.get("help", f"see {cls.__name__}")
        if hints[field.name] is bool and field.default is False:
            parser.add_argument(name, action="store_true", help=text)
        else:
            parser.add_argument(
                name, type=hints[field.name], default=field.default, help=f"{text} (default: %(default)s)"
            )


def add_common_options(parser: ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """Preset, data, seeds, results folder and the federation, but for the fields to skip."""
    parser.add_argument("--config", action="config", help="YAML file with options; later ones win")
    parser.add_argument("--preset", type=str, default="quick", help=f"one of {', '.join(presets())}")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder with the data sets")
    parser.add_argument("--seeds", type=int | str, default="5", help="seeds as 1,2,3, or how many; 7, is the seed 7")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="where rows and tables go")
    _add_fields(parser, FederationSpec, "", skip)


def add_run_options(parser: ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """What commands that train need beside the common options."""
    add_common_options(parser, skip)
    parser.add_argument("--artifacts-dir", type=Path, default=Path("artifacts"), help="where trained federations go")
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu or cuda, as Fabric calls them")
    started = "default: 1, or what torchrun or srun started"
    devices = f"devices per machine, with a process each that simulates its share of the clients ({started})"
    parser.add_argument("--devices", type=int | None, default=None, help=devices)
    parser.add_argument("--num-nodes", type=int | None, default=None, help=f"machines ({started})")
    parser.add_argument("--precision", type=str, default="32-true", help=f"one of {', '.join(PRECISIONS)}")
    parser.add_argument(
        "--tf32", action="store_true", help="on a GPU: let float32 products round to TF32, which is faster"
    )
    _add_wandb_options(parser, "auto")
    parser.add_argument("--wandb-images", action="store_true", help="upload synthetic images too; they may reveal data")


def _add_wandb_options(parser: ArgumentParser, mode: str) -> None:
    modes = "auto (online where an API key is configured), online, offline or disabled"
    parser.add_argument("--wandb", type=str, default=mode, help=f"log runs to W&B: {modes} (default: {mode})")
    parser.add_argument("--wandb-project", type=str | None, default=None, help="W&B project (default: quickdrop-bench)")
    parser.add_argument("--wandb-entity", type=str | None, default=None, help="W&B user or team (default: your own)")


def add_train_options(parser: ArgumentParser) -> None:
    """What training needs."""
    add_run_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on with what was begun; refuse to begin anew")


def _method_options(parser: ArgumentParser) -> None:
    parser.add_argument("--methods", type=str, default="", help="methods to run, as a,b (default: the table's)")
    parser.add_argument(
        "--class", dest="forget_class", type=str | int, default="9", help=f"{CLASS_HELP}; 9,3 one by one"
    )
    parser.add_argument(
        "--client", dest="forget_client", type=int | str, default="0", help="client to forget, in tables about clients"
    )
    parser.add_argument("--protocol", type=str, default="preset", help=f"{', '.join(PROTOCOLS)}, or several as a,b")
    parser.add_argument(
        "--patience", type=int | None, default=None, help="end descents after this many rounds without progress"
    )
    parser.add_argument("--force", action="store_true", help="measure again what was measured already")
    parser.add_argument("--jobs", type=int, default=1, help="seeds and cells at a time, each in a process of its own")
    for name in METHODS:
        _add_fields(parser, METHODS[name], f"{name}.")


def add_table_options(parser: ArgumentParser) -> None:
    """What commands that run methods need as well."""
    parser.add_argument("number", type=int, help="number of the table in the paper")
    add_run_options(parser)
    _method_options(parser)


def add_sweep_options(parser: ArgumentParser) -> None:
    """What commands that run methods on several federations need."""
    add_run_options(parser, skip=("clients",))
    _method_options(parser)
    parser.add_argument("--scales", type=str | None, default=None, help="scales s to sweep, as 1,10,100")
    parser.add_argument("--alphas", type=str | None, default=None, help="concentrations α to sweep, as 0.1,1")
    parser.add_argument("--clients", type=int | str, default=10, help="number of clients N, or several as 10,20")
    parser.add_argument("--fine-tunes", type=str | None, default=None, help="fine-tuning F to sweep, as 0,10,20")
    parser.add_argument("--datasets", type=str | None, default=None, help="data sets to sweep, as digits,mnist")
    parser.add_argument("--dry-run", action="store_true", help="show the plan with an estimate of time, and stop")


def add_figure_options(parser: ArgumentParser) -> None:
    """What commands that draw a figure need as well."""
    parser.add_argument("number", type=int, help="number of the figure in the paper")
    add_sweep_options(parser)


def add_run_name(parser: ArgumentParser) -> None:
    """Which trained federation is meant, and what its commands share."""
    parser.add_argument("run", type=str, help="folder of a trained federation, or its name or the beginning of it")
    parser.add_argument("--artifacts-dir", type=Path, default=Path("artifacts"), help="where trained federations are")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def add_show_options(parser: ArgumentParser) -> None:
    """What looking at a trained federation needs."""
    add_run_name(parser)
    parser.add_argument("--recover-log", action="store_true", help="rebuild a lost requests.jsonl from the versions")


def add_evaluate_options(parser: ArgumentParser) -> None:
    """What evaluating a trained federation needs."""
    add_run_name(parser)
    parser.add_argument("--version", type=int | None, default=None, help="model version (default: the current one)")
    _add_machine_options(parser)


def add_export_options(parser: ArgumentParser) -> None:
    """Which model goes where, and in which form."""
    add_run_name(parser)
    parser.add_argument("--version", type=int | None, default=None, help="model version (default: the current one)")
    parser.add_argument("--format", type=str, default="safetensors", help="safetensors, torchscript or onnx")
    parser.add_argument("--output", type=Path | None, default=None, help="file to write (default: in the run's folder)")


def add_request_options(parser: ArgumentParser) -> None:
    """What a request on a trained federation needs."""
    add_run_name(parser)
    parser.add_argument("--preset", type=str | None, default=None, help="of the settings (default: the training's)")
    parser.add_argument(
        "--class", dest="forget_class", type=str | int, default="", help=f"{CLASS_HELP}; 9,3 one by one"
    )
    parser.add_argument("--client", dest="forget_client", type=int | str, default="", help="client; 3,5 one by one")
    parser.add_argument("--method", type=str, default="quickdrop", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--absent", type=int | str, default="", help="clients that cannot take part now, as 1,4")
    parser.add_argument(
        "--from-version",
        type=int | None,
        default=None,
        help="go back to this version, where newer ones are damaged (default: the current one)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show participants and cost, and stop")
    _add_machine_options(parser)
    _add_wandb_options(parser, "disabled")
    for name in METHODS:
        _add_fields(parser, METHODS[name], f"{name}.")


def add_dashboard_options(parser: ArgumentParser) -> None:
    """Whose dashboard, and where it goes."""
    parser.add_argument("--wandb-project", type=str | None, default=None, help="W&B project (default: quickdrop-bench)")
    parser.add_argument("--wandb-entity", type=str | None, default=None, help="W&B user or team; needed to publish")
    parser.add_argument("--output", type=Path, default=Path("dashboard.json"), help="file for the definition")
    parser.add_argument("--publish", action="store_true", help="save it on W&B too; needs a key and a network")


def _add_machine_options(parser: ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder with the data sets")
    parser.add_argument("--accelerator", type=str, default="cpu", help="auto, cpu or cuda, as Fabric calls them")
    precisions = f"one of {', '.join(PRECISIONS)} (default: the training's)"
    parser.add_argument("--precision", type=str | None, default=None, help=precisions)


def add_no_options(parser: ArgumentParser) -> None:
    """For commands that only list something."""


def add_report_options(parser: ArgumentParser) -> None:
    """Where rows are and where the page goes."""
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder with the rows")
    parser.add_argument("--output", type=Path | None, default=None, help="default: report.html in the results folder")


def seeds_of(args: Namespace) -> tuple[int, ...]:
    """``--seeds`` as numbers; a lone number n means 1 to n, and ``n,`` the seed n."""
    text = str(args.seeds)
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise BadInput("--seeds", text, "numbers as 1,2,3 or a count are needed") from None
    if "," not in text:
        positive("--seeds", numbers[0], at_least=1, at_most=10_000)
        return tuple(range(1, numbers[0] + 1))
    if len(set(numbers)) < len(numbers) or not 0 <= min(numbers) <= max(numbers) < 2**63:
        raise BadInput("--seeds", text, "every seed must be at least 0, below 2^63 and given once")
    return tuple(numbers)


def federation_spec(args: Namespace) -> FederationSpec:
    """The federation that the options describe."""
    _ = DATASETS[args.dataset]
    return FederationSpec(**{f.name: getattr(args, f.name) for f in fields(FederationSpec)})


def rules_of(args: Namespace, *, relearn: bool, each_round: bool) -> Rules:
    """How methods are run."""
    return Rules(args.protocol, args.patience, relearn, each_round)


def methods_of(args: Namespace) -> dict[str, Method]:
    """Hyper-parameters of every registered method, from the options ``--<method>.<field>``."""
    built = {}
    for name in METHODS:
        values = args.get(name.replace("-", "_"), Namespace())  # a method may have no settings
        if not isinstance(values, Namespace):
            raise BadInput(f"--{name}", values, f"settings of a method are named, as --{name}.field or in a section")
        try:
            built[name] = METHODS[name](**vars(values))
        except BadInput as error:
            field = error.option.rsplit(".", 1)[-1].replace("_", "-")
            raise BadInput(f"--{name}.{field}", error.value, error.allowed) from error
    return built


def make_fabric(
    args: Namespace, callbacks: Sequence[Any] = (), loggers: Sequence[Logger] = (), *, alone: bool = False
) -> Fabric:
    """A launched Fabric, with a process for each of ``--devices`` on each of ``--num-nodes`` where these are given.

    Args:
        args: with ``accelerator``, ``precision`` and, if there may be several processes, ``devices, num_nodes``.
        callbacks: of the first process; the others get none.
        loggers: likewise.
        alone: one process, whatever the options say.

    Raises:
        BadInput: the accelerator, the number of devices or the precision cannot be had.
    """
    if args.precision not in PRECISIONS:
        raise BadInput("--precision", args.precision, f"use one of {', '.join(PRECISIONS)}")
    known = ("auto", "cpu", "cuda", "gpu", "mps")
    if args.accelerator not in known:
        raise BadInput("--accelerator", args.accelerator, f"use one of {', '.join(known)}")
    if args.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise BadInput("--accelerator", args.accelerator, "no CUDA device was found here; use cpu or auto")
    if args.accelerator == "mps" and not torch.backends.mps.is_available():
        raise BadInput("--accelerator", args.accelerator, "no MPS device was found here; use cpu or auto")
    if args.precision == "16-mixed" and (args.accelerator in ("cpu", "mps") or not torch.cuda.is_available()):
        raise BadInput("--precision", args.precision, "it needs CUDA; use 32-true or bf16-mixed on this device")
    devices, nodes = (1, 1) if alone else processes_of(args)
    _set_arithmetic(args)
    for name in [name for name in os.environ if name.startswith("LT_")]:
        del os.environ[name]  # set by ``fabric run``; it starts the processes, and our options say what they use
    several = devices * nodes > 1
    if several:
        mark_children()
    try:
        fabric = Fabric(
            accelerator=args.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=ClientParallel() if several else "auto",
            precision=args.precision,
            # Without a launcher, one process is on its own and several are started here, inside a SLURM job as well.
            plugins=None if several and started() else LightningEnvironment(),
            callbacks=list(callbacks) if is_first() else [],
            loggers=list(loggers) if is_first() else [],
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise BadInput("--devices", devices, f"the processes cannot be launched: {error}") from error
    if fabric.device.type == "cuda":
        # The host only plans, on some thousand numbers; threads that wait for each other make that 4 times slower.
        torch.set_num_threads(1)
    if is_first() and fabric.device.type == "cpu" and args.precision == "bf16-mixed":
        _warn_of_slow_bfloat16()
    return fabric


def _set_arithmetic(args: Namespace) -> None:
    """float32 means float32 unless ``--tf32`` allows otherwise, and of cuDNN's kernels those that repeat their bits.

    Kernels that the compiler fused may sum in another order on another machine.
    """
    tf32 = bool(args.get("tf32"))
    if tf32 and not on_gpu(args):
        raise BadInput("--tf32", "true", "it needs a CUDA device, and this command computes on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True


def on_gpu(args: Namespace) -> bool:
    """Whether a command computes on a CUDA device."""
    return args.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()


def arithmetic(args: Namespace) -> str:
    """What decides the rounding of a federation: its precision, the kind of device, and TF32.

    Federations that differ in it never share a folder or a speed-up.
    """
    place = " on CUDA" if on_gpu(args) else " on MPS" if args.accelerator == "mps" else ""
    return str(args.precision) + place + (" with TF32" if args.get("tf32") else "")


@cache
def _warn_of_slow_bfloat16() -> None:
    """Once a process, on a CPU of the x86 kind that has to imitate it."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning("--precision bf16-mixed: without AVX-512 a CPU is many times slower in it than in 32-true")


def processes_of(args: Namespace) -> tuple[int, int]:
    """``--devices`` and ``--num-nodes``; one each for commands that have no such options.

    Raises:
        BadInput: so many cannot be had, or torchrun or SLURM started another number of processes.
    """
    there_are = started()
    per_node, everywhere = there_are or (1, 1)
    devices, nodes = args.get("devices"), args.get("num_nodes")
    devices = per_node if devices is None else devices
    nodes = everywhere // per_node if nodes is None else nodes
    there = torch.cuda.device_count() if on_gpu(args) else os.cpu_count() or 1
    positive("--devices", devices, at_least=1, at_most=there)
    positive("--num-nodes", nodes, at_least=1)
    if args.accelerator == "mps" and devices > 1:
        raise BadInput("--devices", devices, "there is one MPS device")
    if nodes > 1 and not there_are:
        raise BadInput("--num-nodes", nodes, "several machines are started by torchrun or srun, which were not used")
    if there_are and devices * nodes != everywhere:
        allowed = f"with --num-nodes {nodes}, these have to be the {everywhere} processes that were started"
        raise BadInput("--devices", devices, allowed)
    return devices, nodes
