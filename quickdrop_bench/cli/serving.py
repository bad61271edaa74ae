"""Commands that serve requests on a trained federation: unlearn, relearn, evaluate, show, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric import Fabric
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from quickdrop_bench.cli.lists import classes_of, numbers_of, samples_of
from quickdrop_bench.cli.machine import make_fabric
from quickdrop_bench.cli.resolve import CommandLine, methods_of, of_preset
from quickdrop_bench.cli.unused import check_data, check_request
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import LOG, below
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.harness.callbacks import RequestInfo
from quickdrop_bench.harness.presets import SECTIONS
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.methods import METHODS, Method
from quickdrop_bench.serving import FORMATS, Entry, TrainedRun, export, find_run
from quickdrop_bench.serving.log import recover_log
from quickdrop_bench.serving.plan import PlannedPhase
from quickdrop_bench.tracking.wandb_logger import Tracker, tracking

SUFFIXES = {"safetensors": ".safetensors", "torchscript": ".pt", "onnx": ".onnx"}


def serve(args: Namespace, line: CommandLine) -> int:
    """Forget classes, clients and samples, or learn them again, one after the other; each makes a model version."""
    with tracking(args) as tracker:
        return _serve_all(line.command, args, line, tracker)


def _serve_all(action: str, args: Namespace, line: CommandLine, tracker: Tracker | None) -> int:
    run = _open(args, tracker)
    requests = _requests(action, args, run)
    absent = numbers_of("--absent", args.absent)
    methods = {level: _method(run, args, line, level) for level in {request.level for request in requests}}
    check_request(action, line, args, methods.values(), run.spec.dataset)
    pairs = [(request, methods[request.level]) for request in requests]
    if args.dry_run or len(pairs) > 1:  # of several requests all are served, or none
        planned = run.plan(action, pairs, absent, args.from_version)
    else:
        run.check(action, pairs, absent, args.from_version)
    if args.dry_run:
        _print_plan(run, planned, as_json=args.json)
        return 0
    if args.from_version is not None and (back := {*run.forgotten()} - {*run.forgotten(args.from_version)}):
        named = ", ".join(sorted(request.named(run.info.class_names) for request in back))
        print(f"back to version {args.from_version}: not forgotten any more: {named}", file=sys.stderr)
    start: int | None = args.from_version
    for request, method in pairs:
        info = _info(run, action, request, method, args)
        run.fabric.call("on_run_start", run=info)
        entry = (run.unlearn if action == "unlearn" else run.relearn)(request, method, absent, start)
        start = None  # the others go on from there
        _tell(run.fabric, info, entry)
        _print_entry(run, entry, as_json=args.json)
    return 0


def _info(run: TrainedRun, action: str, request: UnlearningRequest, method: Method, args: Namespace) -> RequestInfo:
    """A request as Fabric's callbacks hear of it."""
    spec = run.spec
    columns = {
        "artefact": action,
        "dataset": run.info.name,
        "clients": spec.clients,
        "distribution": spec.distribution,
        "request": request.named(()),
        "protocol": "preset",
        "seed": run.seed,
        "method": args.method,
        "federation_hash": run.folder.name,
        "scale": spec.scale,
        "fine_tuning": spec.fine_tune,
    }
    settings = {
        "federation": spec.resolved(),
        "hyper_parameters": asdict(method),  # type: ignore[call-overload]
        "provenance": provenance(run.fabric, args.preset or run.preset),
    }
    return RequestInfo(action, args.method, run.seed, 0, 1, columns, settings)


def _tell(fabric: Fabric, info: RequestInfo, entry: Entry) -> None:
    """Tell the callbacks how a request was served: its stages' costs, and in all what rows would have."""
    for stage, cost in entry.cost.items():
        if stage != "total":
            fabric.call("on_stage_end", run=info, stage=stage, values=cost, accuracy=None)
    before = {f"{name}_before": value for name, value in (entry.before or {}).items()}
    values = {**entry.cost["total"], **before, **(entry.after or {}), "version": entry.version}
    rows = [{**info.columns, "stage": "total", "metric": name, "value": value} for name, value in values.items()]
    fabric.call("on_run_end", run=info, rows=rows, oracle=())


def _open(args: Namespace, tracker: Tracker | None = None) -> TrainedRun:
    def make(precision: str) -> Fabric:
        told = [tracker] if tracker else []
        return make_fabric(Namespace(**{**vars(args), "precision": args.precision or precision}), told, told)

    return TrainedRun(find_run(args.run, args.artifacts_dir), make, args.data_dir)


def _requests(action: str, args: Namespace, run: TrainedRun) -> list[UnlearningRequest]:
    """Classes first, then clients, then samples, in the order given."""
    classes = classes_of(args.forget_class, run.info.class_names)
    clients, samples = numbers_of("--client", args.forget_client), samples_of(args.forget_samples)
    requests = [UnlearningRequest("class", (c,)) for c in classes] + [
        UnlearningRequest("client", (c,)) for c in clients
    ]
    for asked in samples:
        requests.append(run.samples(asked, action, requests, args.from_version))
    if not requests:
        raise BadInput("--class, --client, --samples", "are missing", "give at least one, e.g. --class 9 or --client 3")
    return requests


def _method(run: TrainedRun, args: Namespace, line: CommandLine, level: str) -> Method:
    """The method with the settings that the federation keeps, unless ``--preset`` or others say otherwise."""
    try:
        _ = METHODS[args.method]
    except BadInput as error:
        raise BadInput("--method", error.value, error.allowed) from error
    named = args.preset and of_preset(args.preset, run.spec.dataset, SECTIONS[level])
    values = named or run.settings(level)
    of_methods = {key: value for key, value in values.items() if "." in key}
    return methods_of(line.over(of_methods))[args.method]


def evaluate(args: Namespace, line: CommandLine) -> int:
    """Accuracies of a model version."""
    run = _open(args)
    check_data(line, [run.spec.dataset])
    found = run.evaluate(args.version)
    version = run.current if args.version is None else args.version
    if args.json:
        gone = [str(request) for request in run.forgotten(version)]
        _print_json({"run": str(run.folder), "version": version, "forgotten": gone, **found})
        return 0
    console = Console(highlight=False, markup=False)
    console.print(f"{run.folder} · version {version} · {_forgotten(run, version)}")
    shown = {"F-Set": "f_set_accuracy", "R-Set": "r_set_accuracy", "all test images": "test_accuracy"}
    shown |= {"attack success": "attack_success"} if run.spec.backdoor else {}
    console.print(" · ".join(f"{name} {_percent(found.get(key))}" for name, key in shown.items()))
    classes = [(name, _percent(found.get(f"class_{c}_accuracy"))) for c, name in enumerate(run.info.class_names)]
    _print_numbers(console, ("class", "accuracy"), classes)
    return 0


def show(args: Namespace, line: CommandLine) -> int:
    """What a trained federation is, what it forgot, and what lies in its folder."""
    folder = find_run(args.run, args.artifacts_dir)
    if args.recover_log:
        print(_recovered(folder), file=sys.stderr)
    run = TrainedRun(folder)
    about = _about(run)
    if args.json:
        _print_json(about)
        return 0
    console = Console(highlight=False, markup=False)
    spec, info = run.spec, run.info
    console.print(
        f"{run.folder}\n{info.name}: {len(info.class_names)} classes, images {'×'.join(map(str, info.image_shape))}\n"
        f"{spec.clients} clients, {spec.distribution}, {about['images']} images; seed {run.seed}; "
        f"{f'backdoor {spec.backdoor}; ' if spec.backdoor else ''}"
        f"{spec.rounds} rounds × {spec.local_steps} local steps on {run.trained.device}\n"
        f"current version {run.current} · {_forgotten(run, run.current)}"
    )
    lines = [(str(e.version), str(e.parent), e.action, _named(run, e), e.method, _when(e), _change(e)) for e in run.log]
    if lines:
        _print_numbers(console, ("version", "from", "", "request", "method", "when (UTC)", "F-Set, R-Set"), lines)
    _print_numbers(console, ("files", "size"), [(name, decimal(size)) for name, size in about["bytes"].items()])
    return 0


def _recovered(folder: Path) -> str:
    if not recover_log(folder):
        return f"{LOG} is whole, and was left as it is"
    return f"{LOG} was rebuilt; of requests that it had lost, costs and accuracies are not known any more"


def _about(run: TrainedRun) -> dict[str, Any]:
    folder = run.folder
    files = [path for path in below(folder) if path.is_file() and not path.name.startswith(".")]
    sizes: dict[str, int] = {}
    for path in sorted(files):
        kind = path.relative_to(folder).parts[0]
        sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    clients = run.trained.clients
    return {
        "run": str(folder),
        "data": asdict(run.info),
        "spec": dict(run.trained.spec),
        "device": run.trained.device,
        "images": sum(len(c.rows) for c in clients.values()),
        "images_by_client": {i: len(c.rows) for i, c in clients.items()},
        "synthetic_images": sum(len(c.synthetic) for c in clients.values() if c.synthetic),
        "current": run.current,
        "forgotten": [str(request) for request in run.forgotten()],
        "requests": [asdict(entry) for entry in run.log],
        "bytes": sizes,
    }


def export_model(args: Namespace, line: CommandLine) -> int:
    """Write a model version for other programs."""
    run = TrainedRun(find_run(args.run, args.artifacts_dir))
    if args.format not in FORMATS:
        raise BadInput("--format", args.format, f"use one of {', '.join(FORMATS)}")
    version = run.current if args.version is None else args.version
    form = args.format
    if args.output and "format" not in line.typed:  # its name says which
        form = next((form for form, suffix in SUFFIXES.items() if suffix == args.output.suffix), form)
    path = args.output or run.folder / f"model-{version:04d}{SUFFIXES[args.format]}"
    export(run, path, form, version)
    print(json.dumps({"path": str(path), "version": version}) if args.json else path)
    return 0


def _forgotten(run: TrainedRun, version: int) -> str:
    gone = [request.named(run.info.class_names) for request in run.forgotten(version)]
    return f"forgotten: {', '.join(gone)}" if gone else "nothing forgotten"


def _named(run: TrainedRun, entry: Entry) -> str:
    """A logged request with the names of its classes."""
    return UnlearningRequest.parse(entry.request).named(run.info.class_names)


def _when(entry: Entry) -> str:
    return str(entry.provenance.get("created_at", ""))[: len("2026-11-28T01:20")].replace("T", " ")


def _change(entry: Entry) -> str:
    if entry.before is None or entry.after is None:
        return "not evaluated"
    pairs = [(entry.before.get(f"{s}_set_accuracy"), entry.after.get(f"{s}_set_accuracy")) for s in "fr"]
    return ", ".join(f"{a:.1%} → {b:.1%}" for a, b in pairs if a is not None and b is not None)


def _print_entry(run: TrainedRun, entry: Entry, *, as_json: bool) -> None:
    """Before and after, and what it cost."""
    model = run.versions.file(entry.version)
    if as_json:
        _print_json({"run": str(run.folder), "model": str(model), **asdict(entry)})
        return
    console = Console(highlight=False, markup=False)
    console.print(
        f"{entry.action} {_named(run, entry)} with {entry.method}: version {entry.parent} → {entry.version} · "
        f"{_forgotten(run, entry.version)}"
    )
    if entry.absent:
        console.print(f"without clients {', '.join(map(str, entry.absent))}: what they hold took no part")
    if entry.before is None or entry.after is None:
        console.print(f"not evaluated: {run.info.name} is not in {run.data_dir}; --data-dir says where it is")
    else:
        names = [("F-Set", "f_set_accuracy"), ("R-Set", "r_set_accuracy"), ("attack success", "attack_success")]
        names += [(f"class {name}", f"class_{c}_accuracy") for c, name in enumerate(run.info.class_names)]
        sides = entry.before, entry.after
        shown = [(name, *(_percent(side.get(key)) for side in sides)) for name, key in names if key in sides[0]]
        _print_numbers(console, ("accuracy", "before", "after"), shown)
    lines = [
        (
            stage,
            f"{c['rounds']:.0f}",
            f"{c['seconds']:.2f}",
            f"{c['sample_gradients']:.0f}",
            decimal(int(c["upload_bytes"])),
        )
        for stage, c in entry.cost.items()
    ]
    _print_numbers(console, ("stage", "rounds", "seconds", "sample-gradients", "upload"), lines)
    console.print(f"model: {model}\n", soft_wrap=True)


def _print_plan(
    run: TrainedRun, planned: Sequence[tuple[UnlearningRequest, Sequence[PlannedPhase]]], *, as_json: bool
) -> None:
    """Participants and cost of every phase, at most."""
    cost = run.trained.cost
    rate = (cost.seconds - cost.distillation_seconds) / max(cost.sample_gradients, 1)
    phases = [(request, phase, rate * phase.cost.sample_gradients) for request, found in planned for phase in found]
    if as_json:
        for request, phase, seconds in phases:
            _print_json({"request": str(request), **asdict(phase), "estimated_seconds": seconds})
        return
    console = Console(highlight=False, markup=False)
    lines = [_plan_line(run, request, phase, seconds) for request, phase, seconds in phases]
    alone = [request.named(run.info.class_names) for request, found in planned if not found]
    lines += [(named, "on the server alone", "0", "", "0", "0", decimal(0), "") for named in alone]
    header = ("request", "stage", "rounds", "clients", "steps", "gradients", "upload", "about")
    _print_numbers(console, header, lines)
    console.print(f"At most; seconds at the rate of the training on {run.trained.device}. Nothing was changed.")


def _plan_line(run: TrainedRun, request: UnlearningRequest, phase: PlannedPhase, seconds: float) -> tuple[str, ...]:
    named, cost = request.named(run.info.class_names), phase.cost
    numbers = str(phase.local_steps), str(cost.sample_gradients), decimal(cost.upload_bytes), f"{seconds:.2g} s"
    return named, phase.name, str(phase.rounds), _clients(phase), *numbers


def _clients(phase: PlannedPhase) -> str:
    listed = ", ".join(map(str, phase.participants[:12])) + (" …" if len(phase.participants) > 12 else "")
    return listed if phase.participation >= 1 else f"{phase.participation:.0%} a round of {listed}"


def _print_numbers(console: Console, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for k, name in enumerate(header):
        numeric = all(line[k][:1].isdigit() or line[k] in ("–", "") for line in lines)
        table.add_column(name, justify="right" if k and numeric else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)


def _print_json(values: Mapping[str, Any]) -> None:
    print(json.dumps(values))  # all but ASCII is escaped: texts of a log may hold what commands a terminal


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


SERVED: dict[str, Callable[[Namespace, CommandLine], int]] = {
    "unlearn": serve,
    "relearn": serve,
    "evaluate": evaluate,
    "show": show,
    "export": export_model,
}
