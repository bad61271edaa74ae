"""Which source files a cached result depends on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quickdrop_bench.harness import sources
from quickdrop_bench.harness.federation_spec import TRAINING
from quickdrop_bench.harness.run_spec import REQUEST

ROOTS = {"training": TRAINING, "request": (*REQUEST, sources.PACKAGE / "methods" / "fed_eraser.py")}


def names(*roots: Path) -> set[str]:
    return {path.relative_to(sources.PACKAGE).as_posix() for path in sources.dependencies(*roots)}


LOADED = """
import importlib, os, sys
import lightning.fabric, pandas, torchmetrics  # once for all
for roots in sys.argv[1:]:
    if not os.fork():
        for module in roots.split(","):
            importlib.import_module(module)
        print(*(m.__file__ for n, m in sys.modules.items() if n.startswith("quickdrop_bench.")), flush=True)
        os._exit(0)
    os.wait()
"""


def test_whatever_python_loads_is_known() -> None:
    """Python's own import of the roots, each kind in a process of its own, is the reference."""
    modules = [",".join(map(module_of, roots)) for roots in ROOTS.values()]
    printed = subprocess.run(
        [sys.executable, "-c", LOADED, *modules], check=True, capture_output=True, text=True
    ).stdout
    for roots, line in zip(ROOTS.values(), printed.splitlines(), strict=True):
        loaded = {Path(path).relative_to(sources.PACKAGE).as_posix() for path in line.split()}
        decide = {name for name in loaded if not name.startswith(sources.APART) and not name.endswith("__init__.py")}
        assert decide <= names(*roots)


def module_of(path: Path) -> str:
    return ".".join(("quickdrop_bench", *path.relative_to(sources.PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("kind", ROOTS)
def test_a_change_in_any_of_them_is_noticed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "quickdrop_bench"
    shutil.copytree(sources.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    roots = [package / root.relative_to(sources.PACKAGE) for root in ROOTS[kind]]
    monkeypatch.setattr(sources, "PACKAGE", package)

    def digest() -> str:
        sources.source_digest.cache_clear()
        return sources.source_digest(*roots)

    seen = {digest()}
    for path in sources.dependencies(*roots):
        path.write_bytes(path.read_bytes() + b"# changed\n")
        seen.add(digest())
    assert len(seen) == len(sources.dependencies(*roots)) + 1
    for path in (*(package / "reporting").rglob("*.py"), *(package / "tracking").glob("*.py")):
        path.write_bytes(path.read_bytes() + b"# changed\n")
    assert digest() in seen


def test_what_decides_numbers_is_among_them() -> None:
    """Read from the paper's algorithms, not from the imports."""
    training = {"federation/federation.py", "federation/local.py", "functional/matching.py", "functional/layers.py"}
    training |= {"distillation/in_situ.py", "data/partition.py", "core/seeding.py"}
    assert training <= names(*TRAINING)
    assert training | {"methods/stages.py", "functional/calibration.py", "harness/tuning.py"} <= names(
        *ROOTS["request"]
    )
    assert not any(name.startswith(("reporting", "cli", "tracking", "store")) for name in names(*ROOTS["request"]))
