"""What sample requests need beside the F-Set: held-out images of the same classes, and how the samples lie."""

from __future__ import annotations

import math

from quickdrop_bench.data.requests import forgotten_rows
from quickdrop_bench.evaluation.metric import METRICS, SERVED, STAGES, Evaluated, Number, metric


@METRICS.register("samples")
@metric(
    {
        "held_out_accuracy": Number(better="higher", oracle=True),
        "memorisation": Number(oracle=True),
        "touched_share": Number("images a sample"),
    },
    {*STAGES, SERVED},
)
def samples(model: Evaluated, stage: str) -> dict[str, float]:
    """How much better a model knows forgotten samples than test images of their classes.

    ``held_out_accuracy`` is H = Σ_c share of c in D_f × accuracy on the test images of c; NaN if D_f has a class
    without one. ``memorisation`` is γ = F − H, with the accuracy F on D_f: above 0 for a model that was trained on D_f,
    about 0 for one that was not. ``touched_share`` is Σ|D_i^c| / |D_f| over the clients i and classes c, or groups in
    them, of which D_f has samples: so many training images have synthetic ones that the request touches. Of requests
    for samples alone.
    """
    if not model.about or any(request.level != "sample" for request in model.about):
        return {}
    data = model.forget_data()
    classes, counts = data.own_labels().unique(return_counts=True)
    total = int(counts.sum())
    accuracy = model.on_test.accuracy
    held_out = sum(n * accuracy[c] for c, n in zip(classes.tolist(), counts.tolist(), strict=True)) / max(total, 1)
    found = model.accuracy_on(data)
    return {
        "held_out_accuracy": held_out if total else math.nan,
        "memorisation": found - held_out,
        "touched_share": _touched(model) / total if total else math.nan,
    }


def _touched(model: Evaluated) -> int:
    """Training images of the clients' classes, or groups within them, of which samples are to be forgotten."""
    import torch

    from quickdrop_bench.data.groups import parts_of

    rows, total = torch.tensor(sorted(forgotten_rows(model.about))), 0
    for i, data in model.clients.items():
        parts = parts_of(data.own_labels().cpu(), model.groups.get(i))
        total += int(torch.isin(parts, parts[torch.isin(data.rows.cpu(), rows)]).sum())
    return total
