"""A disk that is really full, or read-only: one sentence, whole files, and the evaluation goes on afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import evaluation_fakes as fakes
import pytest
from PIL import Image
from test_evaluation import InProcess, _descendants, _files, _plan, _run, _table, _undisturbed

from evaluation.errors import EvaluationError
from evaluation.local import LocalWorker
from evaluation.plan import Batch
from evaluation.run import evaluate
from evaluation.worker import Picture

PAGE = 4096
"""What a file takes at least of this disk."""
SMALL = {"scales": [0], "schedules": [], "seeds": [1]}


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can make a small disk")
    try:
        _mount("-t", "tmpfs", "-o", f"size={256 * PAGE}", "rlg-test", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be made here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


@contextlib.contextmanager
def _pages_left(disk: Path, pages: int) -> Iterator[None]:
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - pages * PAGE))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def _read_only(disk: Path) -> Iterator[None]:
    _mount("-o", "remount,ro", str(disk))
    try:
        yield
    finally:
        _mount("-o", "remount,rw", str(disk))


def _assert_whole(folder: Path, expected: dict[str, bytes]) -> None:
    """Nothing but pictures and tables as an undisturbed evaluation makes them."""
    if folder.exists():
        assert _files(folder).items() <= expected.items()
        assert all(Image.open(path).getbbox() is not None for path in folder.rglob("*.png"))


@pytest.mark.parametrize("pages", [0, 5, 13, 17])
def test_a_full_disk(tmp_path: Path, disk: Path, pages: int) -> None:
    """With room for nothing, for some of the pictures, for those and the tables, and for all but the plots."""
    expected = _undisturbed(tmp_path, **SMALL)
    plan = _plan(tmp_path, **SMALL, output=str(disk / "out"))
    with _pages_left(disk, pages), pytest.raises(EvaluationError) as error:
        _run(plan)
    message = str(error.value)
    assert message.startswith(f"output: {plan.output} cannot be written (No space left on device); ")
    assert message.endswith(".") and "\n" not in message
    _assert_whole(plan.output, expected)
    done = sum(len(_table(path)) for path in plan.output.glob("shards/*/*.csv"))
    assert sum(len(batch.prompts) for batch in _run(plan).done) == 7 - done
    assert _files(plan.output) == expected


def test_a_full_disk_leaves_no_worker(tmp_path: Path, disk: Path) -> None:
    plan = _plan(tmp_path, **SMALL, output=str(disk / "out"))
    with _pages_left(disk, 6), pytest.raises(EvaluationError, match="^output: .*No space left"):
        evaluate(plan, lambda: LocalWorker(fakes.job(plan)))
    assert not _descendants(os.getpid(), "spawn_main")


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_folder(tmp_path: Path, disk: Path, begun: bool) -> None:
    expected = _undisturbed(tmp_path, **SMALL)
    plan = _plan(tmp_path, **SMALL, output=str(disk / "out"))
    if begun:
        with _pages_left(disk, 8), pytest.raises(EvaluationError):
            _run(plan)
    before = _files(disk)
    with _read_only(disk), pytest.raises(EvaluationError) as error:
        _run(plan)
    assert str(error.value) == f"output: {plan.output} cannot be written (Read-only file system); name another."
    assert _files(disk) == before and list(disk.iterdir()) == ([plan.output] if begun else [])
    _run(plan)
    assert _files(plan.output) == expected


def test_a_folder_that_becomes_read_only(tmp_path: Path, disk: Path) -> None:
    """As where the system takes back a disk that fails."""
    expected = _undisturbed(tmp_path, **SMALL)
    plan = _plan(tmp_path, **SMALL, output=str(disk / "out"))
    shards = plan.output / "shards" / "one"

    class Failing(fakes.Drawn):
        def render(self, batch: Batch) -> list[Picture]:
            if batch.first == 4:
                _mount("-t", "tmpfs", "-o", "ro", "rlg-test", str(shards))
            return super().render(batch)

    try:
        with pytest.raises(EvaluationError) as error:
            evaluate(plan, lambda: InProcess(plan, Failing))
    finally:
        subprocess.run(["umount", str(shards)], check=True, capture_output=True)
    assert str(error.value).startswith(f"output: {plan.output} cannot be written (Read-only file system); ")
    _assert_whole(plan.output, expected)
    _run(plan)
    assert _files(plan.output) == expected
