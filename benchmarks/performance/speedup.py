"""How much faster than retraining, and than the fastest other method, QuickDrop serves a class request here.

``python benchmarks/performance/speedup.py`` writes ``results/speed/speedup.md``, from two sources:

- the rows of Table 2 in ``results/``: whole runs;
- at the paper's sizes, which take hours here, every stage of every method is counted in full, a small part of it is
  made and timed, and seconds are (all sample-gradients) × (seconds per sample-gradient of the part). Images are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from cases import DISTINCT, fabric_of, noise, paper_model
from workload import split_by_class

from quickdrop_bench.cli.resolve import federation_spec, methods_of, options_of
from quickdrop_bench.core.allocator import keep_freed_memory
from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.files import write_text
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import augmentation_positions, initial_synthetic_set
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.history import retained_rounds
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.harness.provenance import device_name, provenance
from quickdrop_bench.harness.training import training_phase
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.context import ClientData
from quickdrop_bench.reporting.frame import SETTING, frame_of, latest, named
from quickdrop_bench.reporting.names import differing
from quickdrop_bench.serving.plan import CountingFederation
from quickdrop_bench.store.rows import RowFile

RESULTS = Path(__file__).resolve().parents[2] / "results"
MEASURED = (
    ("small", "reference/small/table2", "preset"),
    ("small", "reference/small/table2-cifar10-jpeg", "preset"),
    ("quick", "reference/quick/table2-preset", "preset"),
)
"""Name, folder and protocol."""

ORACLE, OURS, CONTROL = "retrain-or", "quickdrop", "random-subset"
NAMES = ("retrain-or", "federaser", "sga-or", "fu-mp", "quickdrop")
IMAGES, REQUEST = 50_000, UnlearningRequest("class", (9,))


# From rows.


def measured_lines(name: str, folder: str, protocol: str) -> Iterable[str]:
    """A line per setting: medians over seeds of our time, and of the seeds' ratios of time and sample-gradients.

    Methods have the preset's values.
    """
    frame = latest(frame_of(RowFile(RESULTS / folder / "rows.jsonl").rows))
    frame = named(frame[frame["method_changes"] == ""])
    frame = frame[(frame["stage"] == "total") & (frame["protocol"] == protocol)]
    for _, part in frame.groupby(SETTING, sort=False):
        seconds, gradients = (
            part[part["metric"] == metric].pivot_table(index="seed", columns="method", values="value")
            for metric in ("seconds", "sample_gradients")
        )
        best = str(seconds.drop(columns=[ORACLE, OURS, CONTROL]).median().idxmin())
        label = f"{part['dataset'].iloc[0]}{differing(part['changes'].iloc[0])}"
        yield (
            f"| {name} | {label} | {seconds[OURS].median():.2f} | {ratios(seconds, gradients, ORACLE)}"
            f" | {best} | {ratios(seconds, gradients, best)} | {part['device'].iloc[-1]} |"
        )


def ratios(seconds: pd.DataFrame, gradients: pd.DataFrame, other: str) -> str:
    """Another method's cost in units of ours, the median of the seeds' ratios: seconds, and sample-gradients."""
    return " | ".join(f"{(costs[other] / costs[OURS]).median():.1f}×" for costs in (seconds, gradients))


# At the paper's sizes.


@dataclass(frozen=True)
class Stage:
    """What a stage costs in all, and what a sample-gradient of it costs here.

    Attributes:
        whole: counted; its ``seconds`` are 0.
        rate: seconds per sample-gradient, a forward pass alone counting a third.
    """

    whole: Cost
    rate: float

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.whole.gradient_equivalents * self.rate


def at_papers_sizes() -> Context:
    """A class request to ten clients with random images; the update history lists all of them in ten rounds."""
    spec = federation_spec(options_of(["table", "2", "--preset", "paper"], "table2"))
    federation = Federation(fabric_of(), paper_model(spec.width, depth=spec.depth))
    clients = {}
    for i, data in split_by_class(noise(IMAGES, distinct=DISTINCT), spec.clients, spec.alpha).items():
        own = initial_synthetic_set(data, spec.scale, generator(0, i))
        extra = data.subset(augmentation_positions(data, own, generator(1, i)))
        clients[i] = ClientData(data, own.as_labelled(), extra, own)
    state = federation.fresh_state(0)
    participants = {k: list(clients) for k in retained_rounds(spec.rounds, spec.record_every)}
    history: Any = SimpleNamespace(participants=participants, initial=lambda: state)
    return Context(federation, training_phase(spec), clients, state, REQUEST, (REQUEST,), 0, history)


def stages(context: Context, method: Method) -> list[Cost]:
    """Costs of unlearning and, where there is one, of recovery."""
    unlearned = method.unlearn(context)
    recovered = method.recover(context, unlearned.state)
    return [unlearned.cost, *([] if recovered is None else [recovered.cost])]


def small_part(method: Method) -> Method:
    """The same method with one round of two steps in each stage."""
    few = {"rounds": 1, "unlearn_rounds": 1, "recover_rounds": 1, "unlearn_local_steps": 2, "recover_local_steps": 2}
    return replace(method, **{name: value for name, value in few.items() if hasattr(method, name)})  # type: ignore[type-var]


def timed(context: Context, methods: Mapping[str, Method]) -> dict[str, list[Stage]]:
    """Every method's stages."""
    counting = replace(
        context, federation=CountingFederation(context.federation.fabric, context.federation.scratch_model())
    )
    part = replace(context, training=replace(context.training, local_steps=2, rounds=1))
    found: dict[str, list[Stage]] = {}
    for name, method in methods.items():
        whole = stages(counting, method)
        if name == "federaser":  # its calibration is training on the retained data, as retraining is
            rates = [found[ORACLE][0].rate] * len(whole)
        else:
            done = stages(part, small_part(method))
            rates = [cost.seconds / cost.gradient_equivalents for cost in done]
        found[name] = [Stage(cost, rate) for cost, rate in zip(whole, rates, strict=True)]
    return found


def published() -> dict[str, float]:
    """The paper's seconds of both stages, by method (Table 2)."""
    frame = pd.read_csv(paper_values())
    chosen = (frame["table"].astype(str) == "2") & (frame["metric"] == "seconds")
    both = frame[chosen & frame["stage"].isin(["unlearning", "recovery"])]
    return {str(method): float(part.sum()) for method, part in both.groupby("method")["value"]}


def paper_lines(found: Mapping[str, Sequence[Stage]]) -> Iterable[str]:
    """A line per method."""
    theirs = published()
    total = {name: sum(stage.seconds for stage in own) for name, own in found.items()}
    for name, own in found.items():
        cells = [f"{s.whole.gradient_equivalents:,.0f} | {1e6 * s.rate:.0f} | {s.seconds:,.0f}" for s in own]
        cells += ["— | — | —"] * (2 - len(own))
        cells.append(f"{total[name]:,.0f} | {total[ORACLE] / total[name]:.1f}×")
        cells.append(f"{theirs[name]:,.0f} | {theirs[ORACLE] / theirs[name]:.1f}×" if name in theirs else "— | —")
        yield f"| {name} | {' | '.join(cells)} |"


def table(columns: Sequence[str], lines: Iterable[str]) -> list[str]:
    """Text in the first column, numbers in the others."""
    return [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 1), *lines]


def markdown(found: Mapping[str, Sequence[Stage]]) -> str:
    """The page."""
    commit = str(provenance(fabric_of(), "")["git_commit"])[:10]
    whole = (
        "preset",
        "data",
        "QuickDrop (s)",
        "Retrain-Or ÷ it",
        "in gradients",
        "fastest other",
        "÷ it",
        "in gradients",
        "measured on",
    )
    of_stage = ("gradients", "µs each", "s")
    staged = ("", *(f"{stage}: {what}" for stage in ("unlearning", "recovery") for what in of_stage))
    staged += ("total (s)", "Retrain-Or ÷ it", "paper (s)", "paper: ÷")
    gradients = {name: sum(s.whole.gradient_equivalents for s in own) for name, own in found.items()}
    bound = gradients[ORACLE] / gradients[OURS]
    lines = [
        "# Speed-up of QuickDrop",
        "",
        "Written by `benchmarks/performance/speedup.py`. Gradients are sample-gradients.",
        "",
        "## Whole runs (rows in `results/`; medians over seeds of times, and of the seeds' ratios)",
        "",
        *table(
            whole,
            (line for source in MEASURED for line in measured_lines(*source)),
        ),
        "",
        "## At the paper's sizes, by the paper's letter (T = 50 steps in every stage)",
        "",
        f"{device_name(torch.device('cpu'))}, commit {commit}, float32, random images. Counted in full; the rate is",
        "that of a small part. Last columns: the paper's own seconds.",
        "",
        *table(staged, paper_lines(found)),
        "",
        "What limits it: by the letter QuickDrop makes T steps per client and round on small sets,",
        f"{gradients[OURS]:,.0f} gradients where retraining makes {gradients[ORACLE]:,.0f}. That is {bound:.0f}×,",
        "whatever the code, unless a gradient costs less on a small set than on a large one; here it costs about the",
        "same. Fewer steps of recovery, where a request spends its time, give more: the last line has a step of ascent",
        "and two steps a round of recovery, as many as recover on small data (results/README.md).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    keep_freed_memory()
    letter = ["table", "2", "--preset", "paper", "--protocol", "letter-steps"]
    configured = methods_of(options_of(letter, "table2"))
    methods = {name: configured[name] for name in NAMES}
    few = {"unlearn_local_steps": 1, "recover_local_steps": 2}
    methods[f"{OURS}, 1 and 2 steps a round"] = replace(configured[OURS], **few)  # type: ignore[type-var]
    text = markdown(timed(at_papers_sizes(), methods))
    write_text(RESULTS / "speed" / "speedup.md", text)
    print(text)


if __name__ == "__main__":
    main()
