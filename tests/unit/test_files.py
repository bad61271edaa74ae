"""Writing is all or nothing, and reading is bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from quickdrop_bench.core.files import (
    HEADER,
    check_replaceable,
    file_size,
    open_tensors,
    read_bytes,
    remove_unfinished,
    write_text,
)
from tests.damage import GONE


@pytest.mark.parametrize("step", ["pathlib.Path.write_text", "os.fsync", "pathlib.Path.replace"])
def test_a_failed_writer_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    write_text(tmp_path / "x.txt", "old")

    def fail(path: object, *args: object, **options: object) -> None:
        if isinstance(path, Path):
            path.write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        with pytest.raises(OSError, match="no space left"):
            write_text(tmp_path / "x.txt", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "old"


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("old")
    (tmp_path / f".x.txt.{os.getpid()}.tmp.a").symlink_to("precious")
    (tmp_path / "x.txt").symlink_to("precious")
    write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "precious").read_text() == "old"
    assert not (tmp_path / "x.txt").is_symlink()


KILLED = """
import os, sys
from pathlib import Path
from quickdrop_bench.core.files import write_atomically

def write(temporary):
    temporary.write_bytes(b"half of a model")
    (temporary.parent / ".tmpA1b2C3").touch()  # as the safetensors library has one
    if sys.argv[2]:
        (temporary.parent / "link").symlink_to(sys.argv[2])
    os.kill(os.getpid(), 9)

write_atomically(Path(sys.argv[1]), write)
"""


def test_who_writes_a_file_next_removes_what_a_killed_writer_of_it_left(tmp_path: Path) -> None:
    path, outside, other = tmp_path / "a/x[1].safetensors", tmp_path / "outside", tmp_path / "a/y.safetensors"
    outside.mkdir()
    (outside / "precious").touch()
    for target in (path, other):
        done = subprocess.run([sys.executable, "-c", KILLED, target, outside if target == path else ""], check=False)
        assert done.returncode == -signal.SIGKILL
    left = {found for found in path.parent.iterdir() if found.name.startswith(".x[1].safetensors.")}
    assert [sorted(file.name for file in folder.iterdir()) for folder in left] == [
        [".new.safetensors", ".tmpA1b2C3", "link"]
    ]
    at_work = path.with_name(f".{path.name}.{os.getppid()}.tmp.abc")
    at_work.mkdir()
    link = path.with_name(f".{path.name}.{GONE}.tmp.abc")
    link.symlink_to(outside)
    (path.parent / "elsewhere").symlink_to(outside)
    (outside / f".z.{GONE}.tmp.a").mkdir()
    write_text(path, "whole")
    assert {at_work, path} < {*path.parent.iterdir()}
    assert not left & {*path.parent.iterdir()}
    assert not link.is_symlink()
    assert len(list(path.parent.iterdir())) == 4  # of the other file, too
    remove_unfinished(path.parent)
    assert {found.name for found in path.parent.iterdir()} == {at_work.name, path.name, "elsewhere"}
    assert len(list(outside.iterdir())) == 2


def test_pipes_and_devices_are_not_to_be_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        with pytest.raises(OSError, match="no regular file"):
            check_replaceable(path)
    (tmp_path / "file").touch()
    for name in ("file", "new", ".", "a" * 300):
        check_replaceable(tmp_path / name)


def test_what_this_program_keeps_is_not_to_be_replaced(tmp_path: Path) -> None:
    """Neither rows and what lies beside them, nor anything of a federation but exported models; by any way there."""
    for name in ("run/manifest.json", "run/clients/0000.safetensors", "run/model-1.pt", "t/rows.jsonl", "t/table.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("run")
    federation = ("manifest.json", "global.safetensors", "requests.jsonl", "new.html", "versions/0001.safetensors")
    inside = [f"run/{name}" for name in (*federation, "clients/0000.safetensors", "updates/0000/0001.safetensors")]
    ways = ("t/../run/config.yaml", "link/global.safetensors", "t/rows.jsonl", "t/table.md", "u/rows.jsonl")
    for name in (*inside, *ways):
        with pytest.raises(OSError, match="keeps its own files there"):
            check_replaceable(tmp_path / name)
    for name in ("run/model-1.pt", "run/model-2.onnx", "t/page.html", "model.pt"):
        check_replaceable(tmp_path / name)


@pytest.mark.parametrize("path", ["", "/", "a\0b/x"])
def test_what_is_no_file_name_is_an_error_of_the_file_system(path: str) -> None:
    with pytest.raises(OSError, match="no name of a file"):
        write_text(Path(path), "")


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert (file_size(tmp_path / "x"), read_bytes(tmp_path / "x", 5)) == (5, b"12345")
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "x", 4)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            read_bytes(path, 5)
        with pytest.raises(OSError, match="no regular file"), open_tensors(path):
            pass


def test_tensors_are_opened_only_behind_a_short_header(tmp_path: Path) -> None:
    save_file({"a": zeros(3)}, tmp_path / "x.safetensors")
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert file.get_slice("a").get_shape() == [3]
    save_file({"a": zeros(3)}, tmp_path / "x.safetensors", metadata={"text": "x" * HEADER})
    with pytest.raises(OSError, match="its header is larger"), open_tensors(tmp_path / "x.safetensors"):
        pass
