"""Draw README's picture from the rows of Table 7: ``python benchmarks/readme.py``."""

from __future__ import annotations

from pathlib import Path

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.reporting.figures import tradeoff
from quickdrop_bench.reporting.figures.style import save_picture, style
from quickdrop_bench.reporting.frame import Setting, derive, latest, read_rows, settings_in, without_training

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path("results/reference/small/table7")
LEFT_OUT = ("retrain-again", "none", "recovery-only")
"""Controls that are there to be compared with; README says of no one to use them."""


def measured() -> Setting:
    """The rows of the source with the preset's values, which hold one setting."""
    rows, _ = read_rows(ROOT / SOURCE / "rows.jsonl")
    (setting,) = settings_in(derive(without_training(latest(rows[rows["protocol"] == "preset"]))))
    return setting


def shown() -> list[str]:
    """The methods of the table, without these controls."""
    return [method for method in exhibit("table7").methods if method not in LEFT_OUT]


def points(setting: Setting) -> dict[str, tuple[float, float, float, float]]:
    """By method: sample-gradients, and R-Set − Retrain-Or in percentage points with both ends of its interval."""
    return tradeoff.points(setting, shown())


def main() -> None:
    """Draw it."""
    setting = measured()
    what = f"{setting.columns['dataset']}, {setting.in_words['request']}"
    with style():
        if figure := tradeoff.tradeoff(
            setting,
            shown(),
            f"{what}, 95% intervals. Hollow: forgets too little (?: perhaps); grey line: best R-Set at its cost",
        ):
            save_picture(figure, ROOT / SOURCE / "front")


if __name__ == "__main__":
    main()
