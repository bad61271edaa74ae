"""Measure with many federations whether methods forget samples: U-LiRA and KLOM, on the preset ``quick``.

Run it as ``python benchmarks/shadows.py --jobs 2``, or with ``make shadows``. Federations and methods are those of
Table 9. What a federation's methods end with is kept in ``build/shadows`` at once, so that the same command goes on
where it was interrupted, and more federations or methods add to what is there. When all is there, the margins go to
``results/reference/quick/shadows`` with the table made from them; ``--table`` makes that again from these.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.machine import make_fabric
from quickdrop_bench.cli.resolve import options_of, parse
from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.core.files import open_tensors, write_text
from quickdrop_bench.core.processes import die_with_parent, run_processes
from quickdrop_bench.functional.klom import FEWEST_GAUSSIAN, gaussian_klom, mean_and_p95
from quickdrop_bench.functional.likelihood_ratio import attack
from quickdrop_bench.harness.experiment import ORACLE
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.shadows import SEED, SETS, Shadows
from quickdrop_bench.harness.training import build_federation
from quickdrop_bench.reporting.names import method_title
from quickdrop_bench.store.states import write_tensors

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "shadows"
TARGET = ROOT / "results" / "reference" / "quick" / "shadows"
MARGINS = "margins.safetensors"

LEFT_OUT = ("retrain-again",)
"""Methods of Table 9 without a line here: two halves of the oracle's own models are the noise floor."""

FEWEST_STRANGERS = 3000
"""Scores of samples that were never seen from which on 1% of them are enough to place a threshold."""

Tensors = dict[str, torch.Tensor]


class Options(NamedTuple):
    """What the command line says."""

    federations: int
    pool: int
    methods: str
    jobs: int
    accelerator: str
    results_dir: Path
    table: bool

    @property
    def command(self) -> list[str]:
        """That of Table 9 whose federations and methods are taken."""
        others = [name for name in self.methods.split(",") if name != ORACLE]
        own = ["--methods", ",".join([ORACLE, *others])] if self.methods else []
        return ["table", "9", "--preset", "quick", "--accelerator", self.accelerator, *own]


def read_options() -> Options:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--federations", type=int, default=64, help="how many to train (default: 64)")
    parser.add_argument("--pool", type=int, default=200, help="samples, half of which each trains on (default: 200)")
    parser.add_argument("--methods", default="", help="as a,b, beside retrain-or (default: all that serve samples)")
    parser.add_argument("--jobs", type=int, default=1, help="federations at a time, in a process each (default: 1)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--results-dir", type=Path, default=TARGET, help="folder of margins and table, to be replaced")
    parser.add_argument("--table", action="store_true", help="train nothing; make the table from the margins kept")
    options = Options(**vars(parser.parse_args()))
    positive("--federations", options.federations, at_least=8)
    positive("--jobs", options.jobs, at_least=1, at_most=os.cpu_count() or 1)
    return options


def planned(options: Options) -> tuple[Shadows, list[str]]:
    """The federations, and the methods, the oracle among them."""
    ((experiment, methods),) = cells("table9", parse(options.command))
    return Shadows(experiment, options.pool), [name for name in methods if name not in LEFT_OUT]


def cached(shadows: Shadows, number: int, method: str) -> Path:
    """Where what a method made of a federation is kept."""
    return WORK / f"{number}-{method}-{shadows.key(number, method)}.safetensors"


def measure(options: Options, numbers: Sequence[int]) -> None:
    """What a process does: train federations, one after the other, and let the methods that are missing forget."""
    die_with_parent()
    torch.set_num_threads(1)  # the models gain nothing from more
    shadows, methods = planned(options)
    fabric = make_fabric(options_of(options.command, "table9"), alone=True)
    federation = build_federation(shadows.experiment.federation, fabric, shadows.data)
    about = {name: str(provenance(fabric, "quick")[name]) for name in ("device", "git_commit", "package_version")}
    for number in numbers:
        began = time.monotonic()
        paths = {method: cached(shadows, number, method) for method in methods}
        with tempfile.TemporaryDirectory() as folder:
            deployment = shadows.train(number, federation, Path(folder))
            for method, path in paths.items():
                if not path.exists():
                    write_tensors(path, shadows.serve(number, method, deployment), about)
        print(f"federation {number}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def load(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Read tensors and where they are from."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def collect(shadows: Shadows, methods: Sequence[str], federations: int) -> tuple[Tensors, dict[str, str]]:
    """All that is kept: ``members`` (M, size) uint8 and by method ``<method>.<what>`` (M, …); and where it is from."""
    numbers = range(1, federations + 1)
    found: Tensors = {"members": torch.stack([shadows.members(number) for number in numbers]).to(torch.uint8)}
    origin: dict[str, set[str]] = {}
    for method in methods:
        runs = [load(cached(shadows, number, method)) for number in numbers]
        found |= {f"{method}.{what}": torch.stack([run[what] for run, _ in runs]) for what in (*SETS, "accuracy")}
        for name, value in ((name, value) for _, about in runs for name, value in about.items()):
            origin.setdefault(name, set()).add(value)
    identity = shadows.experiment.identity()
    where = {name: "; ".join(sorted(values)) for name, values in origin.items()}
    setting = f"{identity['dataset']}, {identity['clients']} clients, {identity['distribution']}"
    return found, {**where, "setting": setting, "precision": shadows.experiment.precision, "methods": ",".join(methods)}


def klom(unlearned: np.ndarray, retrained: np.ndarray, sides: np.ndarray) -> tuple[float, float]:
    """Mean and 95th percentile over images of the Gaussian KLOM; NaN with too few models.

    Args:
        unlearned: (M, n) margins of a method's models.
        retrained: (M, n) those of the oracle.
        sides: (M, n) bool: the federations whose unlearned models are compared with the oracle's of all others. So no
            two models have a seed in common, and the oracle itself gives the floor.
    """
    if min(side.sum(axis=0).min() for side in (sides, ~sides)) < FEWEST_GAUSSIAN:
        return float("nan"), float("nan")
    pairs = ((unlearned[side, x], retrained[~side, x]) for x, side in enumerate(sides.T))
    return mean_and_p95(np.array([gaussian_klom(u[:, None], r[:, None])[0] for u, r in pairs]))


def figures(tensors: Tensors, methods: Sequence[str]) -> pd.DataFrame:
    """One line per method: rates of the attack with their 95% intervals, KLOM on each set of images, accuracy."""
    members = tensors["members"].numpy().astype(bool)
    odd = np.arange(len(members)) % 2 == 0  # numbered from 1
    lines = []
    for method in methods:
        own = {name: tensors[f"{method}.{name}"].numpy() for name in (*SETS, "accuracy")}
        found = attack(own["pool"], members, SEED)
        line: dict[str, str | float] = {"method": method}
        for name in ("auc", "tpr"):
            value, half = getattr(found, name), 1.96 * getattr(found, f"{name}_error")
            line |= {name: value, f"{name}_low": max(value - half, 0), f"{name}_high": min(value + half, 1)}
        for name in SETS:
            sides = members if name == "pool" else np.repeat(odd[:, None], own[name].shape[1], axis=1)
            values = klom(own[name], tensors[f"{ORACLE}.{name}"].numpy(), sides)
            line |= dict(zip((f"klom_{name}_mean", f"klom_{name}_p95"), values, strict=True))
        line |= {"r_set_accuracy": own["accuracy"].mean(), "r_set_std": own["accuracy"].std(ddof=1)}
        lines.append(line)
    frame = pd.DataFrame(lines)
    if (~members).sum() < FEWEST_STRANGERS:
        frame[["tpr", "tpr_low", "tpr_high"]] = np.nan
    return frame


HEADERS = ("Method", "AUC", "TPR at 1% FPR", "KLOM, forgotten", "KLOM, retained", "KLOM, test", "R-Set")


def cell_texts(line: pd.Series) -> Iterator[str]:
    """A line of the table."""
    yield method_title(line["method"])
    yield f"{line['auc']:.3f} [{line['auc_low']:.3f}, {line['auc_high']:.3f}]"
    rate, low, high = (100 * line[name] for name in ("tpr", "tpr_low", "tpr_high"))
    yield f"{rate:.1f}% [{low:.1f}, {high:.1f}]" if rate == rate else "—"
    for name in SETS:
        mean, p95 = line[f"klom_{name}_mean"], line[f"klom_{name}_p95"]
        yield f"{mean:.2f} ({p95:.2f})" if mean == mean else "—"
    yield f"{100 * line['r_set_accuracy']:.2f} ± {100 * line['r_set_std']:.2f}%"


def page(frame: pd.DataFrame, tensors: Tensors, about: dict[str, str]) -> str:
    """The table with its caption."""
    federations, pool = tensors["members"].shape
    lines = [HEADERS, ["---", *["--:"] * (len(HEADERS) - 1)], *(cell_texts(line) for _, line in frame.iterrows())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# Are forgotten samples told from samples that were never seen?

{about["setting"]}, preset quick, settings of Table 9; {federations} federations, a pool of {pool} training images. Each
federation trains on a random half of the pool, never sees the other half, and forgets its half.

{table}

AUC and TPR: U-LiRA, each federation's model attacked with all others as shadows; 0.5 and 1% are best, 95% intervals
from a bootstrap over federations. KLOM: KL(unlearned‖retrained) of the margins, Gaussian form, in nats, mean (95th
percentile) over images; the line of Retrain-Or is the floor. R-Set: accuracy on the test images, mean ± standard
deviation over federations; a model with constant margins would have an AUC of 0.5 too. —: too few federations.

Measured on {about["device"]} in {about["precision"]}; commit {about["git_commit"]}, version {about["package_version"]}.
Made from `{MARGINS}` by `python benchmarks/shadows.py --table`.
"""


def write(folder: Path) -> None:
    """Write the table, in both forms, from a folder's margins."""
    if not (folder / MARGINS).is_file():
        raise BadInput("--table", folder, f"there is no {MARGINS} in it; leave out --table to measure")
    tensors, about = load(folder / MARGINS)
    frame = figures(tensors, about["methods"].split(","))
    write_text(folder / "table.csv", frame.to_csv(index=False, float_format="%.5f"))
    write_text(folder / "table.md", page(frame, tensors, about))
    print(folder / "table.md")


def run(options: Options) -> None:
    """Measure what is missing, a share of the federations in each process, and write the table."""
    if options.table:
        write(options.results_dir)
        return
    shadows, methods = planned(options)
    _ = shadows.data
    numbers = range(1, options.federations + 1)
    missing = [k for k in numbers if not all(cached(shadows, k, method).exists() for method in methods)]
    print(f"{len(missing)} of {len(numbers)} federations to train", file=sys.stderr)
    calls = [(options, share) for job in range(options.jobs) if (share := missing[job :: options.jobs])]
    if max((abs(code) for _, code in run_processes(measure, calls, options.jobs)), default=0):
        sys.exit("some federations are missing; the same command tries them again")
    write_tensors(options.results_dir / MARGINS, *collect(shadows, methods, options.federations))
    write(options.results_dir)


def main() -> None:
    """Run, and say in one sentence what is wrong with an option."""
    try:
        run(read_options())
    except BadInput as error:
        print(f"shadows: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("shadows: interrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
