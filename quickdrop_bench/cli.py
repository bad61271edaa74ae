"""The command line: sub-commands to functions, options to frozen dataclasses."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import pandas as pd
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from quickdrop_bench import __version__
from quickdrop_bench.allocator import keep_freed_memory
from quickdrop_bench.data.datasets import DATASETS, dataset_label, load_dataset
from quickdrop_bench.data.partition import class_counts
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.errors import BadInput, positive
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.catalogue import artefact, paper_values, preset_files, presets
from quickdrop_bench.harness.run import ORIGINAL, Experiment, Session, measure
from quickdrop_bench.harness.spec import FederationSpec
from quickdrop_bench.harness.training import client_rows
from quickdrop_bench.methods import METHODS, Method, load_plugins
from quickdrop_bench.progress import ProgressDisplay
from quickdrop_bench.reporting import tables
from quickdrop_bench.reporting.distribution import write_distribution
from quickdrop_bench.rows import RowFile

__all__ = ["main", "parse"]

PROGRAM = "quickdrop-bench"
TABLES = (2,)
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None takes the process's.

    Returns:
        0; 1 if a run diverged or training failed; 2 for input that cannot be used, with one sentence on
        standard error; 130 when interrupted.
    """
    keep_freed_memory()
    try:
        load_plugins()
        args = parse(sys.argv[1:] if argv is None else argv)
        return COMMANDS[args.command][0](args[args.command])
    except BadInput as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except ArithmeticError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command continues from here", file=sys.stderr)
        return 130


class _Parser(ArgumentParser):
    """Errors become one sentence instead of usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _as_bad_input(" ".join(str(message).split()).removesuffix("."))


def _as_bad_input(message: str) -> BadInput:
    """Put a parser's message into the form of all others: option, value, what is allowed."""
    if found := re.search(r'key "([\w.]+)": (.*?)\s*Got value: (.*)$', message):
        key, reason, value = found.groups()
        kinds = re.findall(r"<class '(\w+)'>", reason)
        allowed = f"{' or '.join(dict.fromkeys(kinds))} is needed" if kinds else reason.rstrip(". ")
        return BadInput(f"--{key.replace('_', '-')}", value, allowed)
    if found := re.search(r'key "([\w.]+)": (.*)$', message):
        return BadInput(f"--{found[1].replace('_', '-')}", "is not usable", found[2])
    if found := re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
        return BadInput("command", found[1], f"use one of {found[2]}".replace("'", ""))
    return BadInput("command line", "not understood", message)


def parse(argv: Sequence[str]) -> Namespace:
    """Parse a command line; the preset sets the defaults that options and ``--config`` files override."""
    parser = _Parser(prog=PROGRAM, description="Benchmarks of federated unlearning.", version=__version__)
    commands = parser.add_subcommands(required=True, dest="command")
    for name, (_, options, text) in COMMANDS.items():
        sub = _Parser(description=text)
        options(sub)
        if argv and argv[0] == name and options is not _no_options:
            sub.set_defaults(_preset_defaults(argv, with_methods=options is _table_options))
        commands.add_subcommand(name, sub, help=text)
    return parser.parse_args(list(argv))


def _preset_defaults(argv: Sequence[str], *, with_methods: bool) -> dict[str, Any]:
    """The values of the preset's files, without the sections of methods that the command does not run."""
    preset = _peek(argv, "--preset")
    if preset is None:
        preset = "paper" if torch.cuda.is_available() else "quick"
        if not {"-h", "--help"} & set(argv):
            others = " or ".join(f"--preset {name}" for name in presets() if name != preset)
            print(f"preset {preset} (others: {others})", file=sys.stderr)
    defaults: dict[str, Any] = {"preset": preset}
    for path in preset_files(preset, _peek(argv, "--dataset")):
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if not isinstance(value, dict):
                defaults[key] = value
            elif with_methods:
                defaults |= {f"{key}.{name}": entry for name, entry in value.items()}
    return defaults


def _peek(argv: Sequence[str], option: str) -> str | None:
    """The last value of an option, before the real parser reads it."""
    value = None
    for position, part in enumerate(argv):
        if part == option and position + 1 < len(argv):
            value = argv[position + 1]
        elif part.startswith(f"{option}="):
            value = part.split("=", 1)[1]
    return value


# Options ----------------------------------------------------------------------------------------------------


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


def _common_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with options; later ones win")
    parser.add_argument("--preset", type=str, default="quick", help=f"one of {', '.join(presets())}")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder with the data sets")
    parser.add_argument("--seeds", type=str, default="5", help="seeds as 1,2,3, or how many")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="where rows and tables go")
    _add_fields(parser, FederationSpec, "")


def _run_options(parser: ArgumentParser) -> None:
    _common_options(parser)
    parser.add_argument("--artifacts-dir", type=Path, default=Path("artifacts"), help="where trained federations go")
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu or cuda, as Fabric calls them")
    parser.add_argument("--devices", type=int, default=1, help="number of devices")
    parser.add_argument("--precision", type=str, default="32-true", help=f"one of {', '.join(PRECISIONS)}")


def _method_options(parser: ArgumentParser) -> None:
    parser.add_argument("--methods", type=str, default="", help="methods to run, as a,b (default: the table's)")
    parser.add_argument("--class", dest="forget_class", type=int, default=9, help="class to forget")
    parser.add_argument("--force", action="store_true", help="measure again what was measured already")
    for name in METHODS:
        _add_fields(parser, METHODS[name], f"{name}.")


def _table_options(parser: ArgumentParser) -> None:
    parser.add_argument("number", type=int, help=f"table of the paper: {', '.join(map(str, TABLES))}")
    _run_options(parser)
    _method_options(parser)


def _no_options(parser: ArgumentParser) -> None:
    """For commands that only list something."""


def _seeds(text: str) -> tuple[int, ...]:
    try:
        numbers = [int(part) for part in str(text).split(",")]
    except ValueError:
        raise BadInput("--seeds", text, "numbers as 1,2,3 or a count are needed") from None
    if "," not in str(text):
        positive("--seeds", numbers[0], at_least=1)
        return tuple(range(1, numbers[0] + 1))
    if len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise BadInput("--seeds", text, "every seed must be at least 0 and given once")
    return tuple(numbers)


def _federation_spec(args: Namespace) -> FederationSpec:
    _ = DATASETS[args.dataset]
    return FederationSpec(**{f.name: getattr(args, f.name) for f in fields(FederationSpec)})


def _methods(args: Namespace) -> dict[str, Method]:
    """Hyper-parameters of every registered method, from the options ``--<method>.<field>``."""
    built = {}
    for name in METHODS:
        values = args[name.replace("-", "_")]
        built[name] = METHODS[name](**vars(values))
    return built


def _fabric(args: Namespace, callbacks: list[Any]) -> Fabric:
    """A launched Fabric.

    Raises:
        BadInput: the accelerator, the number of devices or the precision cannot be had.
    """
    if args.precision not in PRECISIONS:
        raise BadInput("--precision", args.precision, f"use one of {', '.join(PRECISIONS)}")
    if args.devices != 1:
        raise BadInput("--devices", args.devices, "one device is supported")
    known = ("auto", "cpu", "cuda", "gpu", "mps")
    if args.accelerator not in known:
        raise BadInput("--accelerator", args.accelerator, f"use one of {', '.join(known)}")
    if args.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise BadInput("--accelerator", args.accelerator, "no CUDA device was found here; use cpu or auto")
    if args.accelerator == "mps" and not torch.backends.mps.is_available():
        raise BadInput("--accelerator", args.accelerator, "no MPS device was found here; use cpu or auto")
    if args.precision == "16-mixed" and (args.accelerator in ("cpu", "mps") or not torch.cuda.is_available()):
        raise BadInput("--precision", args.precision, "it needs CUDA; use 32-true or bf16-mixed on this device")
    fabric = Fabric(accelerator=args.accelerator, devices=1, precision=args.precision, callbacks=callbacks)
    fabric.launch()
    return fabric


# Commands ---------------------------------------------------------------------------------------------------


def _session(args: Namespace, experiment: Experiment) -> tuple[Session, ProgressDisplay]:
    def accuracy(federation: Federation, info: RoundInfo) -> float:
        federation.load(info.state)
        return class_accuracy(federation.model, session.data.test, len(session.data.class_names)).without(())

    display = ProgressDisplay(accuracy)
    session = Session(experiment, _fabric(args, [display]), args.artifacts_dir)
    return session, display


def table(args: Namespace) -> int:
    """Measure what is missing of a table and render it."""
    if args.number not in TABLES:
        raise BadInput("table", args.number, f"use one of {', '.join(map(str, TABLES))}")
    name = f"table{args.number}"
    layout: tables.Layout = artefact(name).LAYOUT
    wanted = [m.strip() for m in args.methods.split(",") if m.strip()] or list(layout.methods)
    configured = _methods(args)
    chosen = {m: configured[m] for m in dict.fromkeys((*layout.methods, *wanted)) if METHODS[m]}
    request = UnlearningRequest("class", (args.forget_class,))
    experiment = Experiment(
        name, args.preset, _federation_spec(args), request, chosen, _seeds(args.seeds), args.data_dir, args.precision
    )
    session, display = _session(args, experiment)
    folder = args.results_dir / args.preset / name
    rows = RowFile(folder / "rows.jsonl")
    rows.check_writable()
    if args.force:
        rows.drop(experiment.run_spec(m, seed).hash for seed in experiment.seeds for m in (ORIGINAL, *wanted))
    with display:
        all_finite = measure(session, rows, wanted, display.start_run)
    frame = pd.concat([_others(rows, experiment), rows.frame(experiment.spec_hashes())], ignore_index=True)
    texts = tables.render(frame, tables.read_published(paper_values(), args.number), layout)
    tables.write_table(folder, texts)
    print(texts["table.md"])
    print(f"rows and table: {folder}", file=sys.stderr)
    return 0 if all_finite else 1


def _others(rows: RowFile, experiment: Experiment) -> pd.DataFrame:
    """The newest rows of the settings in the same file that this command is not about."""
    own = experiment.identity()
    others = [row for row in rows.rows if any(row[key] != own[key] for key in tables.SETTING)]
    return tables.latest(pd.DataFrame(others)) if others else pd.DataFrame()


def train(args: Namespace) -> int:
    """Train federations and save their artifacts."""
    request = UnlearningRequest("class", (0,))  # training does not depend on it
    experiment = Experiment(
        "train", args.preset, _federation_spec(args), request, {}, _seeds(args.seeds), args.data_dir, args.precision
    )
    session, display = _session(args, experiment)
    for seed in experiment.seeds:
        with display:
            display.start_run("fl-training", seed)
            context = session.context(seed)
        folder = session.folder(seed)
        rows = [client.original.rows.cpu().numpy() for _, client in sorted(context.clients.items())]
        counts = class_counts(session.data.train.labels.cpu().numpy(), rows, len(session.data.class_names))
        write_distribution(folder, counts, session.data.class_names, _title(experiment, seed))
        session.federation.load(context.state)
        accuracy = class_accuracy(session.federation.model, session.data.test, len(session.data.class_names)).without(
            ()
        )
        cost = session.training_cost(seed)
        share = cost.distillation_seconds / cost.seconds
        print(f"{folder}  accuracy {accuracy:.4f}  {cost.seconds:.1f} s, {share:.0%} of it distillation")
    return 0


def distribution(args: Namespace) -> int:
    """Show a partition without training: CSV and picture of the classes per client."""
    spec = _federation_spec(args)
    data = load_dataset(spec.dataset, args.data_dir, spec.image_size)
    experiment = Experiment(
        "distribution", args.preset, spec, UnlearningRequest("class", (0,)), {}, _seeds(args.seeds), args.data_dir, ""
    )
    for seed in experiment.seeds:
        rows = client_rows(spec, data.train.labels, seed)
        counts = class_counts(data.train.labels.numpy(), rows, len(data.class_names))
        label = dataset_label(spec.dataset, args.data_dir).replace(":", "-")
        folder = (
            args.results_dir / args.preset / "distribution" / f"{label}-{spec.distribution}-{spec.clients}-seed{seed}"
        )
        try:
            paths = write_distribution(folder, counts, data.class_names, _title(experiment, seed))
        except OSError as error:
            raise BadInput("--results-dir", args.results_dir, f"it cannot be written ({error.strerror})") from error
        print("\n".join(str(path) for path in paths))
    return 0


def _title(experiment: Experiment, seed: int) -> str:
    identity = experiment.identity()
    return f"{identity['dataset']}, {identity['clients']} clients, {identity['distribution']}, seed {seed}"


def list_methods(args: Namespace) -> int:
    """List the methods with what they can do and need."""
    header = ("method", "requests", "relearns", "needs at request time", "what it does")
    lines = [
        (n, ", ".join(sorted(m.levels)), "yes" if m.can_relearn else "no", ", ".join(sorted(m.needs)), m.summary)
        for n, m in ((name, METHODS[name]) for name in METHODS)
    ]
    return _print_list(header, lines)


def list_datasets(args: Namespace) -> int:
    """List the data sets."""
    return _print_list(("data set", "what it is"), [(name, DATASETS[name].summary) for name in DATASETS])


def list_presets(args: Namespace) -> int:
    """List the presets and their files."""
    texts = []
    for name in presets():
        path = preset_files(name, None)[0]
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        special = sorted(p.stem.split(".", 1)[1] for p in path.parent.glob(f"{name}.*.yaml"))
        texts.append((name, first, ", ".join(special)))
    return _print_list(("preset", "what it is", "own settings for"), texts)


def _print_list(header: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    console = Console()
    listing = Table(*header, box=None, pad_edge=False)
    for line in lines:
        listing.add_row(*line)
    console.print(listing)
    return 0


COMMANDS: dict[str, tuple[Callable[[Namespace], int], Callable[[ArgumentParser], None], str]] = {
    "table": (table, _table_options, "measure and render a table of the paper"),
    "train": (train, _run_options, "train a federation and save its artifacts"),
    "distribution": (distribution, _common_options, "show who holds which classes"),
    "methods": (list_methods, _no_options, "list the unlearning methods"),
    "datasets": (list_datasets, _no_options, "list the data sets"),
    "presets": (list_presets, _no_options, "list the presets"),
}
