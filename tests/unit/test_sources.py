"""Which source files a cached result depends on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quickdrop_bench.harness import sources
from quickdrop_bench.harness.spec import REQUEST, TRAINING

ROOTS = {"training": TRAINING, "request": (*REQUEST, sources.PACKAGE / "methods" / "fed_eraser.py")}


def names(*roots: Path) -> set[str]:
    return {path.relative_to(sources.PACKAGE).as_posix() for path in sources.dependencies(*roots)}


@pytest.mark.parametrize("kind", ROOTS)
def test_whatever_python_loads_is_known(kind: str) -> None:
    """Python's own import of the roots is the reference."""
    modules = [
        ".".join(("quickdrop_bench", *p.relative_to(sources.PACKAGE).with_suffix("").parts)) for p in ROOTS[kind]
    ]
    code = (
        f"import sys, {', '.join(modules)}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('quickdrop_bench')), sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    inside = {Path(path).relative_to(sources.PACKAGE).as_posix() for path in loaded}
    decide = {name for name in inside if not name.startswith(sources.APART)}
    empty = {name for name in decide if name.endswith("__init__.py")}
    assert decide - empty <= names(*ROOTS[kind])


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
