"""What a user types and a command would not use is refused in one sentence; nothing is trained for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from quickdrop_bench.cli.resolve import _UniqueKeys
from quickdrop_bench.harness.presets import preset_files, presets
from tests.conftest import PARTITION, TINY, Run
from tests.integration.judging import Ended

TABLE = ["table", "2", *TINY]
OF_TABLE_4 = ["table", "4", *TINY]
SWEEP = ["sweep", *TINY, "--dry-run"]

IDLE: dict[str, tuple[list[str], str]] = {
    "client of a class table": ([*TABLE, "--client", "2"], "--client 2: table2 serves class requests, see --class"),
    "class of a client table": (
        [*OF_TABLE_4, "--class", "3"],
        "--class 3: table4 serves client requests, see --client",
    ),
    "client of a figure": (["figure", "4", *TINY, "--client=1"], "--client 1: figure4 serves class requests"),
    "client of a sweep": ([*SWEEP, "--client", "1"], "--client 1: sweep serves class requests"),
    "class of training": (["table", "6", *TINY, "--class", "3"], "--class 3: table6 measures training"),
    "patience of training": (["table", "6", *TINY, "--patience", "3"], "--patience 3: table6 measures training"),
    "protocol of training": (
        ["table", "6", *TINY, "--protocol", "tuned"],
        "--protocol tuned: table6 measures training",
    ),
    "class twice": ([*TABLE, "--class", "3,3"], "--class 3,3: each must be given once"),
    "client twice": ([*OF_TABLE_4, "--client", "0,0"], "--client 0,0: each must be given once"),
    "client twice, in other words": ([*OF_TABLE_4, "--client", "0,00"], "--client 0,00: each must be given once"),
    "class option twice": ([*TABLE, "--class", "3", "--class=5"], "--class is given twice: several are written as 9,3"),
    "method twice": ([*TABLE, "--methods", "quickdrop,quickdrop"], "--methods quickdrop,quickdrop: each must be given"),
    "protocol twice": ([*TABLE, "--protocol", "tuned,tuned"], "--protocol tuned,tuned: each must be given once"),
    "scale twice": ([*SWEEP, "--scales", "1,1.0"], "--scales 1,1.0: each must be given once"),
    "clients twice": ([*SWEEP, "--clients", "3,3"], "--clients 3,3: each must be given once"),
    "data set twice": ([*SWEEP, "--datasets", "digits,digits"], "--datasets digits,digits: each must be given once"),
    "alpha of IID parts": ([*TABLE, "--iid", "--alpha", "0.5"], "--alpha 0.5: IID parts have no α"),
    "alphas of IID parts": ([*SWEEP, "--alphas", "0.5,1", "--iid"], "--alphas 0.5,1: IID parts have no α"),
    "alpha that is swept": ([*SWEEP, "--alphas", "0.5,1", "--alpha", "0.5"], "--alpha 0.5: --alphas 0.5,1 is swept"),
    "scale that is swept": ([*SWEEP, "--scales", "1,10", "--scale", "5"], "--scale 5: --scales 1,10 is swept"),
    "fine-tuning that a figure sweeps": (
        ["figure", "5", *TINY, "--dry-run", "--fine-tune", "3"],
        "--fine-tune 3: --fine-tunes 0,2,4,6,8 is swept",
    ),
    "data set beside data sets": (
        [*SWEEP, "--datasets", "digits", "--dataset", "digits"],
        "--dataset digits: --datasets digits is swept",
    ),
    "option of another model": (
        [*TABLE[:2], "--preset", "quick", "--model", "lenet5", "--width", "8"],
        "--width 8: --model lenet5 has no such option",
    ),
    "folder of digits": ([*TABLE, "--data-dir", "pics"], "--data-dir pics: digits is read from no folder"),
    "fine-tuning without any": (
        ["train", *TINY, "--fine-tune-steps", "5"],
        "--fine-tune-steps 5: nothing is fine-tuned",
    ),
    "fine-tuning with none swept": (
        [*SWEEP, "--fine-tunes", "0", "--fine-tune-lr", "0.1"],
        "--fine-tune-lr 0.1: nothing is fine-tuned",
    ),
    "images without distillation": (
        ["train", *TINY, "--distill", "false", "--image-lr", "0.5"],
        "--image-lr 0.5: nothing is distilled",
    ),
    "scale without small sets": (
        ["figure", "5", *TINY, "--distill", "false", "--fine-tunes", "0", "--methods", "retrain-or", "--scale", "5"],
        "--scale 5: nothing is distilled, and no method here keeps a subset",
    ),
    "setting of a method that is not shown": (
        ["figure", "2", *TINY, "--sga-or.unlearn-lr", "0.1"],
        "--sga-or.unlearn-lr 0.1: figure2 neither runs nor shows it",
    ),
    "setting of a method that cannot serve it": (
        [*OF_TABLE_4, "--fu-mp.prune-ratio", "0.3"],
        "--fu-mp.prune-ratio 0.3: table4 neither runs nor shows it",
    ),
    "relearning where nothing is learnt again": (
        [*TABLE, "--quickdrop.relearn-lr", "0.1"],
        "--quickdrop.relearn-lr 0.1: table2 learns nothing again",
    ),
    "steps beside passes": (
        ["figure", "6", *TINY, "--dry-run", "--quickdrop.recover-local-steps", "3"],
        "--quickdrop.recover-local-steps 3: --quickdrop.recover-local-epochs 2 takes its place",
    ),
    "setting that is searched for": (
        [*TABLE, "--protocol", "tuned", "--quickdrop.unlearn-lr", "0.1"],
        "--quickdrop.unlearn-lr 0.1: the protocol tuned searches for it",
    ),
    "W&B that is disabled": (
        ["train", *TINY, "--wandb", "disabled", "--wandb-project", "mine"],
        "--wandb-project mine: --wandb is disabled",
    ),
    "images for W&B that is disabled": (
        ["train", *TINY, "--wandb", "disabled", "--wandb-images"],
        "--wandb-images true: --wandb is disabled",
    ),
    "training of a partition": (
        ["distribution", *PARTITION, "--rounds", "2"],
        "--rounds 2: this command trains nothing",
    ),
    "size of a partition": (["distribution", *PARTITION, "--image-size", "8"], "--image-size 8: digits images keep"),
    "folder of a partition": (["distribution", *PARTITION, "--data-dir", "x"], "--data-dir x: digits is read from no"),
    "alpha of an IID partition": (
        ["distribution", *PARTITION, "--iid", "--alpha", "1"],
        "--alpha 1: IID parts have no α",
    ),
}


@pytest.mark.parametrize(("argv", "sentence"), IDLE.values(), ids=IDLE.keys())
def test_what_does_nothing_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, argv: list[str], sentence: str
) -> None:
    monkeypatch.setattr("quickdrop_bench.cli.runner.measure", lambda *args, **options: pytest.fail("measured"))
    monkeypatch.setattr("quickdrop_bench.cli.training._train", lambda *args: pytest.fail("trained"))
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if not line.startswith("preset ")]
    assert line.startswith(f"quickdrop-bench: {sentence}")
    assert line.endswith(".")


USED: dict[str, list[str]] = {
    "iid twice in Table 4": [*OF_TABLE_4, "--iid"],
    "alpha in Table 4": [*OF_TABLE_4, "--alpha", "0.5"],
    "class and client in Table 1": ["table", "1", *TINY, "--class", "3", "--client", "1"],
    "scale among those swept": [*SWEEP, "--scales", "1,10", "--scale", "10"],
    "setting of a method that is shown": [*TABLE, "--methods", "quickdrop", "--sga-or.unlearn-lr", "0.1"],
    "relearning in Table 5": ["table", "5", *TINY, "--quickdrop.relearn-lr", "0.1"],
    "setting of one of two protocols": [*TABLE, "--protocol", "preset,tuned", "--quickdrop.unlearn-lr", "0.1"],
    "scale of a subset": [*TABLE, "--distill", "false", "--methods", "random-subset", "--scale", "5"],
    "folder of one of two data sets": [*SWEEP, "--datasets", "digits,mnist", "--data-dir", "there"],
    "a file for several commands": [*TABLE, "--config", "mine.yaml"],
    "a file for a partition": ["distribution", *PARTITION, "--config", "mine.yaml"],
}


@pytest.mark.parametrize("argv", USED.values(), ids=USED.keys())
def test_what_does_something_is_not_refused(run: Run, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    Path("mine.yaml").write_text("rounds: 2\nfine_tune_steps: 3\n")
    monkeypatch.setattr("quickdrop_bench.cli.runner.measure", lambda *args, **options: True)
    monkeypatch.setattr("quickdrop_bench.cli.runner._render", lambda *args: None)
    monkeypatch.setattr("quickdrop_bench.cli.runner.plan", lambda *args, **options: [])
    code, _, err = run(*argv)
    assert code == 0, err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["unlearn", "--class", "3,3"], "--class 3,3: each must be given once"),
        (["unlearn", "--class", "3", "--absent", "1,1"], "--absent 1,1: each must be given once"),
        (["unlearn", "--class", "3", "--data-dir", "x"], "--data-dir x: digits is read from no folder"),
        (["evaluate", "--data-dir", "x"], "--data-dir x: digits is read from no folder"),
        (["unlearn", "--class", "3", "--s2u.beta", "0.1"], "--s2u.beta 0.1: --method is quickdrop"),
        (
            ["unlearn", "--class", "3", "--quickdrop.relearn-lr", "0.1"],
            "--quickdrop.relearn-lr 0.1: unlearn does not use it",
        ),
        (
            ["relearn", "--class", "3", "--quickdrop.recover-lr", "0.1"],
            "--quickdrop.recover-lr 0.1: relearn does not use it",
        ),
    ],
)
def test_requests_refuse_what_they_would_not_use(trained: str, run: Run, argv: list[str], sentence: str) -> None:
    code, _, err = run(argv[0], trained, *argv[1:])
    assert (code, err.startswith(f"quickdrop-bench: {sentence}")) == (2, True), err


@pytest.fixture(scope="module")
def trained(table_2_once: tuple[Path, Ended]) -> str:
    """The folder of a trained federation, which is only read."""
    return str(next((table_2_once[0] / "artifacts").iterdir()))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("rounds: 2\nalpha: 1\nrounds: 3\n", "rounds"),
        ("quickdrop: {unlearn_lr: 1, unlearn_lr: 2}\n", "unlearn_lr"),
        ("quickdrop: {}\nquickdrop: {}\n", "quickdrop"),
    ],
)
def test_a_repeated_key_is_refused(run: Run, text: str, key: str) -> None:
    Path("twice.yaml").write_text(text)
    for command in (["table", "2"], ["train"]):
        code, _, err = run(*command, *TINY, "--config", "twice.yaml")
        assert (code, f"the key {key} is given twice" in err) == (2, True), err


def test_presets_repeat_no_key() -> None:
    folder = preset_files(presets()[0], None)[0].parent
    for path in folder.glob("*.yaml"):
        assert _UniqueKeys(path.read_text()).get_single_data()
