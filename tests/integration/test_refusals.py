"""What cannot be used, or would do nothing, is refused in one sentence, whichever command; nothing is run for it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from quickdrop_bench.cli.main import main
from tests.conftest import PARTITION, TINY, Run

FILES = {
    "unknown": "nonsense: 1\n",
    "broken": "a: [1, {\n",
    "words": "two rounds\n",
    "nothing": "alpha:\n",
    "flag": "iid: 3\n",
    "method": "quickdrop: {nope: 1}\n",
    "other": "config: mine.yaml\n",
    "twice": "rounds: 2\nalpha: 1\nrounds: 3\n",
    "within": "quickdrop: {unlearn_lr: 1, unlearn_lr: 2}\n",
    "section": "quikdrop: {unlearn_lr: 0.1}\n",
    "giant": f"batch_size: {10**20}\n",
    "listed": "methods: [quickdrop, sga-or]\n",
}
"""Configuration files, each of which holds a mistake."""

THOUSAND = ",".join(map(str, range(1, 1001)))

REFUSED = {
    # No such thing.
    "tabel": "command tabel: use one of table, figure,",
    "table": "the following arguments are required: number",
    "table 99": "table 99: use one of 1, 2, 3, 4, 5, 6",
    "table two": "table two: a whole number is needed",
    "figure 1": "figure 1: use one of 2, 3, 4, 5, 6",
    "table 2 --nope 1": "--nope",
    "table 2 --roun 3": "--roun",
    "table 2 more words": "more words",
    "table 2 --preset qick": "--preset qick: use one of quick, small, paper",
    "table 2 --dataset mnits": "--dataset mnits: did you mean mnist?",
    "table 2 --methods ,": "--methods ,: at least one is needed",
    "table 2 --methods sga": "--methods sga: did you mean sga-or?",
    "table 2 --protocol fast": "--protocol fast: use one of preset, tuned, letter-steps, letter-passes",
    "table 2 --model lenet": "--model lenet: did you mean lenet5?",
    "table 2 --norm batch": "--norm batch",
    "table 2 --accelerator cuda": "--accelerator cuda",
    "table 2 --accelerator abacus": "--accelerator abacus",
    "table 2 --precision 8": "--precision 8",
    "table 2 --precision 16-mixed": "--precision 16-mixed",
    "table 2 --dataset imagefolder --data-dir none": "--data-dir none",
    "table 2 --results-dir flag.yaml": "--results-dir flag.yaml",
    "table 2 --artifacts-dir flag.yaml": "--artifacts-dir flag.yaml",
    "distribution --results-dir flag.yaml": "--results-dir flag.yaml",
    "train --wandb sometimes": "--wandb sometimes: use one of auto, online, offline, disabled.",
    "train --wandb offline --wandb-project a/b": "use at most 128 characters, and none of / \\ # ? % :.",
    f"train --wandb offline --wandb-project {'x' * 129}": "at most 128 characters",
    "train --wandb offline --wandb-project ' '": "at most 128 characters",
    "table 2 --sga-or.ascent sideways": "--sga-or.ascent sideways: use one of gradient, reflection",
    # No such number.
    "table 2 --alpha 0": "--alpha 0.0",
    "table 2 --alpha nan": "--alpha nan: a number is needed",
    "table 2 --patience 1.5": "--patience 1.5: a whole number or null is needed",
    "table 2 --scale 0.5": "--scale 0.5",
    "train --dropout-rate=-0.1": "--dropout-rate -0.1: a number at least 0 and below 1",
    "train --straggler-rate 1": "--straggler-rate 1.0: a number at least 0 and below 1",
    "train --corrupt-rate .nan": "--corrupt-rate nan: a number at least 0 and below 1",
    "train --corrupt-rate often": "--corrupt-rate often",
    "table 4 --backdoor client=20": "client must be between 0 and 2",
    "train --backdoor share=1": "only client is required",
    "train --backdoor client=0,target=10": "target must be between 0 and 9",
    "table 2 --clients 5000": "--clients 5000",
    "table 2 --depth 9": "--depth 9",
    "table 2 --min-client-size 2000": "--min-client-size 2000: between 0 and 480 for 3 clients and 1442 training",
    "train --min-client-size 2000": "--min-client-size 2000: between 0 and 480",
    "distribution --min-client-size 2000": "--min-client-size 2000: between 0 and 480",
    f"train --batch-size {10**20}": f"--batch-size {10**20}: a whole number of at most 1000000000 is needed",
    f"table 2 --min-client-size {10**20}": f"--min-client-size {10**20}: a whole number of at most",
    f"table 2 --quickdrop.unlearn-rounds {10**20}": f"--quickdrop.unlearn-rounds {10**20}: a whole number of at most",
    "train --config giant.yaml": f"--batch-size {10**20}: a whole number of at most 1000000000 is needed",
    "table 2 --seeds one": "--seeds one",
    "table 2 --fu-mp.prune-ratio 1": "--fu-mp.prune-ratio 1.0",
    "table 2 --clients 0": "--clients 0",
    "table 2 --patience 0": "--patience 0",
    "table 2 --devices 9999": "--devices 9999",
    "table 2 --seeds 0": "--seeds 0",
    f"sweep --scales {THOUSAND} --alphas {THOUSAND}": "command line asks for 1000000 federations",
    "table 4 --seeds 5001": "asks for 10002 federations, 2 of them on each seed: at most 10000 are planned",
    "table 2 --seeds 1,1": "--seeds 1,1",
    "sweep --seeds 99999999999": "--seeds 99999999999",
    "train --seeds 99999999999999999999,": "--seeds",
    "train --fine-tune-steps -1 --fine-tune 1": "--fine-tune-steps -1",
    "sweep --fine-tunes 1 --fine-tune-steps 0": "--fine-tune-steps 0",
    "table 2 --quickdrop.unlearn-lr -1": "--quickdrop.unlearn-lr -1.0",
    "table 2 --federaser.calibration-ratio 0": "--federaser.calibration-ratio 0.0",
    "table 4 --s2u.beta 2": "--s2u.beta 2.0",
    "table 2 --class 10": "--class 10: between 0 and 9",
    "table 2 --class nine": "--class nine",
    "table 4 --client 3": "--client 3: between 0 and 2",
    "table 9 --samples 0": "--samples 0: at least 1 is needed",
    "table 9 --samples nowhere": "--samples nowhere: a number, or a file that lists client,row a line, is needed",
    "table 9 --samples=": "--samples '': it is empty; give a value, or leave the option out",
    "table 2 --methods=": "--methods '': it is empty",
    "table 2 --methods quickdrop --sga-or.unlearn-lr 0.1": "--sga-or.unlearn-lr 0.1: --methods does not name it",
    "table 9 --class 3": "--class 3: table9 serves sample requests, see --samples",
    "table 2 --samples 5": "--samples 5: table2 serves class requests, see --class",
    "table 9 --methods s2u": "--methods s2u: it serves client requests, not sample requests",
    # No such list.
    "table 2 --dataset ,": "--dataset ,: at least one is needed",
    "sweep --datasets ,": "--datasets ,: at least one is needed",
    "sweep --scales 1,many": "--scales 1,many: numbers are needed",
    "sweep --scales 0.5": "--scale 0.5",
    "sweep --clients some": "--clients some: whole numbers are needed",
    "sweep --fine-tunes 1.5": "--fine-tunes 1.5: whole numbers are needed",
    "sweep --jobs 5000": "--jobs 5000",
    "sweep --jobs 0": "--jobs 0",
    "sweep --scales 1,10 --jobs 2 --devices 2": "--jobs 2: either cells or, with --devices, clients run",
    "train --num-nodes 2 --devices 2": "--num-nodes 2: several machines are started by torchrun or srun",
    "table 2 --class 3,3": "--class 3,3: each must be given once",
    "table 4 --client 0,00": "--client 0,00: each must be given once",
    "table 2 --class 3 --class=5": "--class is given twice: several are written as 9,3",
    "table 2 --methods quickdrop,quickdrop": "--methods quickdrop,quickdrop: each must be given once",
    "sweep --scales 1,1.0": "--scales 1,1.0: each must be given once",
    # No such file, or nothing that it could set.
    "table 2 --config none.yaml": "--config none.yaml: it cannot be read",
    "table 2 --config unknown.yaml": "--config unknown.yaml: this command has no option nonsense",
    "table 2 --config section.yaml": "has no option quikdrop that a file could set; --print_config prints those",
    "table 2 --config listed.yaml": "--methods ['quickdrop', 'sga-or']: text is needed",
    "train --config method.yaml": "this command has no option quickdrop.nope",
    "table 2 --config broken.yaml": "--config broken.yaml: it is no YAML file",
    "table 2 --config words.yaml": "--config words.yaml: it holds no options",
    "table 2 --config nothing.yaml": "--alpha null: a value is needed",
    "train --config flag.yaml": "--iid 3: true or false is needed",
    "train --config other.yaml": "this command has no option config",
    "train --config twice.yaml": "it is no YAML file (the key rounds is given twice, line 3)",
    "table 2 --config within.yaml": "the key unlearn_lr is given twice",
    # What a method cannot do.
    "table 4 --methods fu-mp": "fu-mp: it serves class requests",
    "table 2 --methods s2u": "s2u: it serves client requests",
    "table 2 --record-every 0": "federaser: it needs update-history",
    "table 6 --methods quickdrop": "--methods quickdrop: table6 measures training and runs no method",
    "table 6 --distill false": "--distill false: table6 is about distillation",
    "figure 5 --distill false --fine-tunes 2": "--fine-tune 2",
    # What would do nothing.
    "table 2 --client 2": "--client 2: table2 serves class requests, see --class",
    "table 4 --class 3": "--class 3: table4 serves client requests, see --client",
    "figure 4 --client=1": "--client 1: figure4 serves class requests",
    "table 6 --class 3": "--class 3: table6 measures training",
    "table 6 --patience 3": "--patience 3: table6 measures training",
    "table 6 --protocol tuned": "--protocol tuned: table6 measures training",
    "table 2 --iid --alpha 0.5": "--alpha 0.5: IID parts have no α",
    "sweep --alphas 0.5,1 --iid": "--alphas 0.5,1: IID parts have no α",
    "sweep --alphas 0.5,1 --alpha 0.5": "--alpha 0.5: --alphas 0.5,1 is swept",
    "sweep --scales 1,10 --scale 5": "--scale 5: --scales 1,10 is swept",
    "figure 5 --fine-tune 3": "--fine-tune 3: --fine-tunes 0,2,4,6,8 is swept",
    "sweep --datasets digits --dataset digits": "--dataset digits: --datasets digits is swept",
    "sweep --models lenet5 --model lenet5": "--model lenet5: --models lenet5 is swept",
    "train --model lenet5 --norm none": "--norm none: --model lenet5 has no such option",
    "table 2 --data-dir pics": "--data-dir pics: digits is read from no folder",
    "train --fine-tune-steps 5": "--fine-tune-steps 5: nothing is fine-tuned",
    "sweep --fine-tunes 0 --fine-tune-lr 0.1": "--fine-tune-lr 0.1: nothing is fine-tuned",
    "train --distill false --image-lr 0.5": "--image-lr 0.5: nothing is distilled",
    "figure 5 --distill false --fine-tunes 0 --methods retrain-or --scale 5": "--scale 5: nothing is distilled",
    "figure 2 --sga-or.unlearn-lr 0.1": "--sga-or.unlearn-lr 0.1: figure2 neither runs nor shows it",
    "table 4 --fu-mp.prune-ratio 0.3": "--fu-mp.prune-ratio 0.3: table4 neither runs nor shows it",
    "table 2 --quickdrop.relearn-lr 0.1": "--quickdrop.relearn-lr 0.1: table2 learns nothing again",
    "sweep --quickdrop.recover-local-steps 3": "--quickdrop.recover-local-epochs 2 takes its place",
    "table 2 --protocol tuned --quickdrop.unlearn-lr 0.1": "the protocol tuned searches for it",
    "train --results-dir elsewhere": "unrecognized arguments: --results-dir elsewhere",
    "train --wandb disabled --wandb-project mine": "--wandb-project mine: --wandb is disabled",
    "train --wandb disabled --wandb-images": "--wandb-images true: --wandb is disabled",
    "train --model lenet5 --resume": "--resume artifacts: no training with these options was begun",
    "distribution --rounds 2": "--rounds 2: this command trains nothing",
    "distribution --backdoor client=0": "this command trains nothing",
    "distribution --image-size 8": "--image-size 8: digits images keep",
    "distribution --data-dir x": "--data-dir x: digits is read from no",
    "distribution --iid --alpha 1": "--alpha 1: IID parts have no α",
}


def argv_of(command: str) -> list[str]:
    """The command with the options of a tiny federation in front of its own."""
    argv = shlex.split(command)
    if len(argv) == 1 and argv[0] in ("tabel", "table"):
        return argv
    start = 2 if argv[0] in ("table", "figure") else 1
    tiny = [part for part in (PARTITION if argv[0] == "distribution" else TINY) if "--width" != part != "4"]
    for option in ("--clients", "--seeds"):
        if option in argv:
            del tiny[(k := tiny.index(option)) : k + 2]
    return [*argv[:start], *tiny, *argv[start:]]


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_is_one_sentence(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, text in FILES.items():
        Path(f"{name}.yaml").write_text(text)
    code, out, err = run(*argv_of(command))
    assert (code, out) == (2, ""), err
    (sentence,) = err.splitlines()
    assert sentence.startswith("quickdrop-bench: ")
    assert sentence.endswith(".")
    assert REFUSED[command] in sentence
    assert not list(Path("artifacts").glob("*"))


USED = [
    "table 4 --iid",
    "table 4 --alpha 0.5",
    "table 1 --class 3 --client 1",
    "sweep --scales 1,10 --scale 10 --dry-run",
    "table 5 --quickdrop.relearn-lr 0.1",
    "table 2 --protocol preset,tuned --quickdrop.unlearn-lr 0.1",
    "table 2 --distill false --methods random-subset --scale 5",
    "sweep --datasets digits,mnist --data-dir there --dry-run",
    "sweep --models convnet,lenet5 --norm none --dry-run",
    "table 2 --config mine.yaml",
    "distribution --config mine.yaml",
]


@pytest.mark.parametrize("command", USED)
def test_what_does_something_is_not_refused(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    Path("mine.yaml").write_text("rounds: 2\nfine_tune_steps: 3\n")
    monkeypatch.setattr("quickdrop_bench.cli.runner.measure", lambda *args, **options: True)
    monkeypatch.setattr("quickdrop_bench.cli.runner._render", lambda *args: None)
    monkeypatch.setattr("quickdrop_bench.cli.runner.plan", lambda *args, **options: [])
    code, _, err = run(*argv_of(command))
    assert code == 0, err


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_nothing_goes_with_what_is_asked_of_the_program(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main([option, "table"]) == 2
    assert f"{option} table: nothing goes with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    {
        b"rouns: 3\n": "--preset mine: it sets rouns, which is no option, table or figure",
        b"quikdrop: {unlearn_lr: 1}\n": "--preset mine: it sets quikdrop, which",
        b"quickdrop: {unlern_lr: 1}\n": "--preset mine: it sets quickdrop.unlern_lr, which",
        b"table2: {rouns: 3}\n": "--preset mine: it sets rouns, which",
        b"table22: {rounds: 3}\n": "--preset mine: it sets table22, which",
        b"rounds: 3\nrounds: 4\n": "benchmarks presets/mine.yaml: it is no YAML file (the key rounds is given twice",
        b"rounds: [\n": "benchmarks presets/mine.yaml: it is no YAML file (expected the node content, but found",
        b"# caf\xe9\n": "benchmarks presets/mine.yaml: it is no YAML file in UTF-8",
        b"": "benchmarks presets/mine.yaml: it holds no options, as rounds: 2",
    }.items(),
)
def test_a_mistake_in_ones_own_preset_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes, sentence: str
) -> None:
    Path("benchmarks/presets").mkdir(parents=True)
    Path("benchmarks/presets/mine.yaml").write_bytes(text)
    monkeypatch.setattr("quickdrop_bench.harness.presets.benchmarks_dir", lambda: tmp_path / "benchmarks")
    code, out, err = run("table", "2", "--preset", "mine", "--dry-run")
    assert (code, out) == (2, "")
    assert err.startswith(f"quickdrop-bench: {sentence}")
    assert len(err.splitlines()) == 1
    assert run("presets")[0] == 0
