"""float32 means float32 on a GPU, unless TF32 is asked for, and rows and federations say which."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quickdrop_bench.cli import machine, resolve
from quickdrop_bench.cli.resolve import arithmetic, options_of
from quickdrop_bench.core.errors import BadInput

TABLE = ["table", "2", "--preset", "quick", "--accelerator"]


@pytest.fixture(autouse=True)
def flags_kept() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize("asked", [False, True])
def test_products_round_to_tf32_only_where_it_is_asked_for(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (machine, resolve):
        monkeypatch.setattr(module, "on_gpu", lambda args: True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not asked
    args = options_of([*TABLE, "auto", *["--tf32"][:asked]])
    machine._set_arithmetic(args)
    assert torch.backends.cuda.matmul.allow_tf32 is asked
    assert torch.backends.cudnn.allow_tf32 is asked
    assert torch.backends.cudnn.deterministic
    assert arithmetic(args) == "32-true on CUDA" + " with TF32" * asked


def test_on_a_cpu_tf32_is_refused_rather_than_ignored() -> None:
    with pytest.raises(BadInput, match="--tf32 true: it needs a CUDA device"):
        machine._set_arithmetic(options_of([*TABLE, "cpu", "--tf32"]))
