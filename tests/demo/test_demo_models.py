"""The demo's models in the cache: written once, whole, by whichever process comes first."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo import run as demo


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where models were written to: a small file for those of a real pair, which takes its time."""
    folders: list[Path] = []

    def write(models: Path) -> None:
        folders.append(models)
        (models / "loras").mkdir(parents=True)
        time.sleep(0.5)
        (models / "loras" / "file").write_text("whole")

    monkeypatch.setenv("RLG_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "write_models", write)
    return folders


def test_two_at_once_write_once(written: list[Path]) -> None:
    """As two processes of the tests do on a fresh cache."""
    with ThreadPoolExecutor(2) as pool:
        one, other = (done.result() for done in [pool.submit(demo.demo_models) for _ in range(2)])
    assert one == other and len(written) == 1
    assert (one / "loras" / "file").read_text() == "whole"


def test_what_an_interrupted_one_left_is_written_anew(written: list[Path]) -> None:
    folder = demo.demo_models()
    (folder / demo.MARKER).unlink()
    (folder / "loras" / "file").unlink()
    assert demo.demo_models() == folder and (folder / "loras" / "file").exists()
    assert demo.demo_models() == folder and len(written) == 2


def test_models_of_another_version_are_removed_once_nothing_runs_on_them(
    written: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clones, with different pairs, share a cache."""
    broken, other = (tmp_path / "demo_models" / name for name in ("0123456789ab", "ba9876543210"))
    for folder in (broken, other):
        folder.mkdir(parents=True)
    (other / demo.MARKER).touch()
    folder = demo.demo_models()
    assert not broken.exists() and other.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    assert demo.demo_models() == folder and not other.exists() and (folder / "loras" / "file").exists()
