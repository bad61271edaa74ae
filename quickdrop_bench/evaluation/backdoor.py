"""How well a backdoor works, on federations of which one client has one."""

from __future__ import annotations

from quickdrop_bench.evaluation.metric import METRICS, SERVED, STAGES, Evaluated, Number, metric


@METRICS.register("backdoor")
@metric(
    {
        "attack_success": Number(better="lower", oracle=True),
        "f_set_clean_accuracy": Number(better="lower", oracle=True),
        "f_set_poisoned_accuracy": Number(better="lower", oracle=True),
    },
    {*STAGES, SERVED},
)
def attack_success(model: Evaluated, stage: str) -> dict[str, float]:
    """Success of a client's backdoor: test images with the trigger that are taken for its target.

    Test images of the target itself do not count. The F-Set of a client is divided into clean and poisoned images;
    these are labelled as the target.
    """
    if model.planted is None:
        return {}
    found = {"attack_success": model.accuracy_on(model.planted.attack)}
    if model.about and not model.by_class:
        kinds = zip(("clean", "poisoned"), model.planted.clean_and_poisoned(model.forget_data()), strict=True)
        found |= {f"f_set_{kind}_accuracy": model.accuracy_on(data) for kind, data in kinds}
    return found
