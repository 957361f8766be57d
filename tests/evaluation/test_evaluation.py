"""An evaluation makes exactly what its plan says, whatever is killed meanwhile, and says in one sentence why it cannot.

The pictures come from processes that draw random pixels: what is tested is planning, handing out, writing, summing up.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED
from concurrent.futures import wait as futures_wait
from contextlib import closing
from pathlib import Path
from typing import Any

import evaluation_fakes as fakes
import numpy as np
import psutil
import pytest
import yaml
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation import local, plots, summary, workers
from evaluation.__main__ import carry_out, parse
from evaluation.command_line import carried_out
from evaluation.errors import EvaluationError
from evaluation.local import LocalWorker
from evaluation.plan import Batch, Plan, load_plan
from evaluation.run import evaluate
from evaluation.store import Store
from evaluation.worker import Picture
from evaluation.workers import Workers
from plots.reward_curve import reward_curve

REPO = Path(__file__).resolve().parents[2]
HOST = os.environ["COMFYUI_PATH"]
WORKER_KILLS, DRIVER_KILLS = 3, 2
"""Few, since every one costs a start."""
SURPRISES = [
    "two\r\nlines\rand\nmore",
    "a\u2028b",
    "\u202eright to left",
    "👩‍👩‍👧 family",
    'with "quotes", commas',
    "=1+1",
    "café",
    "café",
]

RAY_WORKER = "ray::_Actor"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray")


def _settings(**changes: Any) -> dict[str, Any]:
    return {
        "output": "out",
        "pairs": [{"checkpoint": "base.safetensors", "lora": "loras/one"}],
        "prompts": {"file": "prompts.txt"},
        "seeds": [3, 5],
        "scales": [0, 1.6, 1],
        "schedules": [{"combined_generation": {"switch_percent": 0.5}}],
        "rewards": ["first", {"name": "second", "file": "weights"}],
        "batch": 2,
        **changes,
    }


def _write_plan(folder: Path, lines: list[str] | None = None, **changes: Any) -> Path:
    lines = [f"prompt {n}" for n in range(7)] if lines is None else lines
    (folder / "prompts.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(_settings(**changes)), encoding="utf-8")
    return file


def _plan(folder: Path, lines: list[str] | None = None, **changes: Any) -> Plan:
    return load_plan(_write_plan(folder, lines, **changes))


class InProcess:
    """Workers without a process, which count what they were given."""

    slots = 1

    def __init__(self, plan: Plan, renderer: type[fakes.Drawn] = fakes.Drawn) -> None:
        self._renderer = renderer(plan, fakes.job(plan).host)
        self._waiting: list[Batch] = []
        self.done: list[Batch] = []

    def describe(self) -> dict[str, Any]:
        return self._renderer.describe()

    def submit(self, batch: Batch) -> None:
        self._waiting.append(batch)

    def wait(self) -> tuple[Batch, list[Picture]]:
        self.done.append(self._waiting.pop())
        return self.done[-1], self._renderer.render(self.done[-1])

    def close(self) -> None:
        pass


def _run(plan: Plan) -> InProcess:
    found = InProcess(plan)
    evaluate(plan, lambda: found)
    return found


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _undisturbed(folder: Path, **changes: Any) -> dict[str, bytes]:
    other = folder / "undisturbed"
    other.mkdir()
    plan = _plan(other, **changes)
    _run(plan)
    return _files(plan.output)


# --- The plan -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, True]}, "seeds[1]: input should be a valid integer"),
        ({"seeds": []}, "seeds: list should have at least 1 item"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 is there twice"),
        ({"seeds": [2**64]}, "seeds[0]: input should be less than"),
        ({"scales": [0, 11]}, "scales: scale: 11.0 cannot be used"),
        ({"scales": [float("nan")]}, "scales[0]: input should be a finite number"),
        ({"scales": [1, 1.0]}, "scales and schedules: s = 1 is there twice"),
        ({"scales": [], "schedules": []}, "scales: there are none"),
        ({"schedules": [{"ramp": {}, "keyframes": {"keyframes": "0:0"}}]}, "schedules[0]: give exactly one of range"),
        ({"schedules": [{"ramp": {"curve": "steep"}}]}, "schedules[0].ramp.curve: string should match"),
        ({"schedules": [{"keyframes": {"keyframes": "half"}}]}, "schedules[0]: keyframes: 'half' is not"),
        ({"output": "a\0b"}, "output: a path has no NUL in it"),
        ({"output": "~no-such-user/out"}, "output: there is no home folder ~no-such-user"),
        ({"prompts": {"file": "a\0b"}}, "prompts.file: a path has no NUL in it"),
        ({"pairs": []}, "pairs: list should have at least 1 item"),
        ({"pairs": [{"checkpoint": "a"}]}, "pairs[0]: give either lora or tuned_checkpoint"),
        ({"pairs": [{"checkpoint": "a", "lora": "b", "tuned_checkpoint": "c"}]}, "pairs[0]: give either"),
        ({"pairs": [{"lora": "b"}]}, "pairs[0]: give either checkpoint, or diffusion_model with text_encoders and vae"),
        ({"pairs": [{"checkpoint": "a", "diffusion_model": "b", "lora": "c"}]}, "pairs[0]: give either checkpoint, or"),
        ({"pairs": [{"checkpoint": "a", "lora": "b", "weight_dtype": "fp16"}]}, "pairs[0].weight_dtype: input should"),
        ({"pairs": [{"checkpoint": "a", "lora": "b", "name": "../b"}]}, "pairs[0]: its name '../b' cannot be"),
        ({"pairs": [{"checkpoint": "a", "lora": "x/b"}, {"checkpoint": "c", "lora": "B"}]}, "pairs: b is there twice"),
        ({"pairs": [{"checkpoint": "a", "lora": "Shards"}]}, "pairs: shards is the name of a folder of ours"),
        ({"pairs": [{"checkpoint": "a", "lora": ".safetensors"}]}, "pairs[0]: its name '' cannot be"),
        ({"rewards": ["a", "a"]}, "rewards: a is there twice"),
        ({"rewards": [3]}, "rewards[0]: input should be a valid dictionary"),
        ({"steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"width": 100}, "width: input should be a multiple of 8"),
        ({"sede": [1]}, "sede is not known here"),
        ({"prompts": {}}, "prompts.file is missing"),
    ],
)
def test_a_bad_plan_is_one_sentence_about_the_first_mistake(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError) as caught:
        _plan(tmp_path, **changes)
    file, _, sentence = str(caught.value).partition(": ")
    assert file == str(tmp_path / "plan.yaml")
    assert sentence.startswith(message) and sentence.endswith(".") and "\n" not in sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no plan"),
        (b"- 1", "holds no plan"),
        (b"output: [", "is no YAML"),
        (b"output: a\noutput: b", "is no YAML ('output' is there twice"),
        (b"output: 2026-02-30", "is no YAML (day is out of range"),
        (b'output: "\\ud800"', "is no YAML (half a character"),
        (b"output: \xff", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, text: bytes | None, message: str) -> None:
    file = tmp_path / "plan.yaml"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(EvaluationError) as caught:
        load_plan(file)
    assert str(caught.value).startswith(f"{file} {message}") and str(caught.value).endswith(".")


def test_parts_of_a_plan_may_be_merged_from_others(tmp_path: Path) -> None:
    """As YAML knows it; a mapping's own names go before."""
    (tmp_path / "plan.yaml").write_text(
        yaml.safe_dump(_settings(pairs=[])).replace(
            "pairs: []", "pairs:\n- &one {checkpoint: base, lora: one}\n- {<<: *one, lora: two}"
        )
    )
    pairs = load_plan(tmp_path / "plan.yaml").pairs
    assert [(pair.checkpoint, pair.lora) for pair in pairs] == [("base", "one"), ("base", "two")]


@given(prompts=st.integers(1, 40), size=st.integers(1, 12), pairs=st.integers(1, 3))
def test_batches_hold_every_prompt_of_every_pair_once(
    tmp_path_factory: pytest.TempPathFactory, prompts: int, size: int, pairs: int
) -> None:
    texts = [f"prompt {n}" for n in range(prompts)]
    models = [{"checkpoint": "a", "lora": f"l{n}"} for n in range(pairs)]
    plan = _plan(tmp_path_factory.mktemp("plan"), texts, pairs=models, batch=size)
    batches = [batch for pair in range(pairs) for batch in plan.batches(pair, texts)]
    found = [(b.pair, b.first + n, text) for b in batches for n, text in enumerate(b.prompts)]
    assert found == [(pair, n, text) for pair in range(pairs) for n, text in enumerate(texts)]
    assert all(len(batch.prompts) <= size for batch in batches)


def test_schedules_are_those_of_the_nodes(tmp_path: Path) -> None:
    choices = [
        {"range": {"scale": 2, "start_percent": 0.25, "end_percent": 0.75}},
        {"combined_generation": {"switch_percent": 0.5, "scale": 3}},
        {"ramp": {"curve": "power", "power": 2}},
        {"keyframes": {"keyframes": "0:0, 0.5:2", "interpolation": "linear"}},
    ]
    cells = _plan(tmp_path, schedules=choices, scales=[1]).cells
    assert [cell.schedule.per_step(4) for cell in cells] == [
        (1, 1, 1, 1), (1, 2, 2, 1), (0, 0, 3, 3), (0, 1 / 16, 1 / 4, 9 / 16), (0, 1, 2, 2),
    ]  # fmt: skip
    assert len({cell.folder for cell in cells}) == 5


def test_a_tuned_cfg_of_0_is_the_same_as_cfg(tmp_path: Path) -> None:
    """As on the nodes."""
    assert _plan(tmp_path, tuned_cfg=0) == _plan(tmp_path) != _plan(tmp_path, tuned_cfg=1.0)


def test_ten_thousand_prompts_at_seven_scales_are_planned_at_once(tmp_path: Path) -> None:
    prompts = [f"prompt number {n} of a long list" for n in range(10_000)]
    file = _write_plan(tmp_path, prompts, scales=[0, 0.5, 1, 1.5, 2, 3, 4], schedules=[], batch=4)
    tracemalloc.start()
    started = time.monotonic()
    plan = load_plan(file)
    with closing(Store(plan, plan.prompts.read())) as store:
        missing = store.missing()
    seconds = time.monotonic() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(missing) == 2500
    assert seconds < 5 and peak < 50e6


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt its text and its scores are kept, of its pictures (60 kB here) nothing."""
    # A plot takes more than all of that, and as much for one prompt as for a thousand.
    monkeypatch.setattr("evaluation.run.plots", lambda *_: {})

    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        plan = _plan(folder, [f"prompt {n}" for n in range(count)], seeds=[1], schedules=[], batch=1)
        tracemalloc.start()
        evaluate(plan, lambda: InProcess(plan, fakes.Nothing))
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    peak(2)  # what is imported and cached once
    assert peak(120) - peak(20) < 100 * 6_000


# --- What is written ------------------------------------------------------------------------------------------


def test_pictures_and_tables_are_those_of_the_plan(tmp_path: Path) -> None:
    pairs = [{"checkpoint": "base", "lora": "loras/one"}, {"checkpoint": "base", "tuned_checkpoint": "t.safetensors"}]
    lines = (json.dumps({"prompt": prompt}) for prompt in SURPRISES)
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    plan = _plan(tmp_path, pairs=pairs, prompts={"file": "prompts.jsonl"})
    evaluate(plan, lambda: LocalWorker(fakes.job(plan)))
    for name, tuned in (("one", "loras/one"), ("t", "t.safetensors")):
        for folder, scale, schedule in (
            ("scale_0.0", "0.0", ""),
            ("scale_1.6", "1.6", ""),
            ("scale_1.0", "1.0", ""),
            ("scale_0-0_0.5-1", "", "0:0, 0.5:1"),
        ):
            place = plan.output / name / folder
            expected = [(prompt, seed) for prompt in SURPRISES for seed in plan.seeds]
            metadata, results = _table(place / "metadata.csv"), _table(place / "evaluation_results.csv")
            assert len(list(place.glob("*.png"))) == len(metadata) == len(results) == len(expected)
            for number, ((prompt, seed), row, result) in enumerate(zip(expected, metadata, results, strict=True)):
                assert row == {
                    "image_path": f"{number:05d}.png", "prompt": prompt, "seed": str(seed), "scale": scale,
                    "schedule": schedule, "model": "base", "lora": tuned,
                }  # fmt: skip
                picture = fakes.pixels(name + prompt, seed, folder)
                assert np.array_equal(np.asarray(Image.open(place / row["image_path"])), picture)
                assert {key: result[key] for key in ("image_path", "prompt", "seed")} == {
                    key: row[key] for key in ("image_path", "prompt", "seed")
                }
                for reward, column in enumerate(("first_score", "second_score")):
                    assert np.float32(result[column]) == np.float32(fakes.score(picture, reward))


def test_a_missing_plot_library_is_found_before_the_first_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plan = _plan(tmp_path)
    with pytest.raises(EvaluationError, match=r"^plots need the Python package matplotlib, .*\.$"):
        _run(plan)
    assert not plan.output.exists()


def test_a_finished_evaluation_computes_nothing(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    _run(plan)
    before = _files(plan.output)

    def none_needed() -> Workers:
        raise AssertionError

    evaluate(plan, none_needed)
    assert _files(plan.output) == before


def test_a_rerun_makes_exactly_what_is_missing(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    _run(plan)
    before = _files(plan.output)
    (plan.output / "one" / "scale_1.6" / "00005.png").unlink()  # prompt 2, in the second batch
    (plan.output / "shards" / "one" / "000006.csv").unlink()
    (plan.output / "one" / "scale_0.0" / "00001.png.123.tmp").write_bytes(b"half")
    assert sorted(batch.first for batch in _run(plan).done) == [2, 6]
    assert _files(plan.output) == before


def test_a_full_disk_costs_the_batch_in_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever file it happens: the error says so, nothing is half-written, and the rerun ends as undisturbed."""
    expected = _undisturbed(tmp_path, scales=[0], schedules=[], seeds=[1])
    replace = os.replace
    files = len([name for name in expected if name != ".lock"])
    for fails_at in range(0, files, 3):
        folder = tmp_path / str(fails_at)
        folder.mkdir()
        plan, calls = _plan(folder, scales=[0], schedules=[], seeds=[1]), iter(range(1000))

        def full(*args: Any, fails_at: int = fails_at, calls: Iterator[int] = calls) -> None:
            if next(calls) >= fails_at:
                raise OSError(28, "No space left on device")
            replace(*args)

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(EvaluationError, match="^output: .*No space left.*what is done is kept"):
            _run(plan)
        monkeypatch.undo()
        there = _files(plan.output)
        assert there.items() <= expected.items()
        whole = sum(len(_table(path)) for path in plan.output.glob("shards/*/*.csv"))
        assert sum(len(batch.prompts) for batch in _run(plan).done) == 7 - whole
        assert _files(plan.output) == expected


@pytest.mark.parametrize("name", ["thesis.txt", "thesis.tmp"])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, name: str) -> None:
    plan = _plan(tmp_path)
    plan.output.mkdir()
    (plan.output / name).write_text("mine")
    with pytest.raises(EvaluationError, match=r"^output: .* holds other files; choose an empty or a new folder\.$"):
        _run(plan)
    assert _files(plan.output) == {name: b"mine"}


@pytest.mark.parametrize("name", [".DS_Store", "._x", "desktop.ini", "Thumbs.db"])
def test_what_a_file_manager_writes_into_a_folder_is_no_reason_to_refuse_it(tmp_path: Path, name: str) -> None:
    plan = _plan(tmp_path)
    plan.output.mkdir()
    (plan.output / name).write_bytes(b"\0")
    _run(plan)
    assert (plan.output / "summary.csv").exists()


def test_a_file_that_another_program_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Excel does on Windows."""
    plan, replace = _plan(tmp_path), os.replace

    def held(new: Path, path: Path) -> None:
        if path.name == "summary.csv":
            raise PermissionError(13, "Access is denied", str(new), None, str(path))
        replace(new, path)

    monkeypatch.setattr("files.replacing.os.replace", held)
    monkeypatch.setattr("files.replacing.time.sleep", lambda _: None)
    with pytest.raises(
        EvaluationError, match=r"^output: .*\(Access is denied: summary\.csv\); close it in the program"
    ):
        _run(plan)
    monkeypatch.undo()
    _run(plan)
    assert (plan.output / "summary.csv").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, text: str) -> None:
    plan = _plan(tmp_path)
    _run(plan)
    (plan.output / "manifest.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"manifest.json is damaged; choose another folder, or delete"):
        _run(plan)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"\xff" + data])
def test_a_damaged_shard_is_not_summed_up(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """As a power cut leaves it; its numbers must not be missing silently."""
    plan = _plan(tmp_path)
    _run(plan)
    before, shard = _files(plan.output), plan.output / "shards" / "one" / "000002.csv"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(EvaluationError, match=r"000002\.csv is damaged; delete it and run this again\.$"):
        _run(plan)
    shard.unlink()
    _run(plan)
    assert _files(plan.output) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, "steps: 28 there, 5 here"),
        ({"scales": [0, 1]}, r"scales: \[0.0, 1.6, 1.0\] there, \[0.0, 1.0\] here"),
        ({"lines": ["another"]}, "prompts: 7 there, 1 here"),
        ({"lines": [f"other {n}" for n in range(7)]}, "prompts_sha256"),
    ],
)
def test_results_of_another_plan_are_not_mixed_in(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    plan = _plan(tmp_path)
    _run(plan)
    before = _files(plan.output)
    other = _plan(tmp_path, **changes)
    with pytest.raises(EvaluationError, match=f"holds the results of another plan.*{message}"):
        _run(other)
    assert _files(plan.output) == before


def test_results_of_other_model_files_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(tmp_path)
    _run(plan)
    (plan.output / "shards" / "one" / "000006.csv").unlink()
    monkeypatch.setattr(fakes.Drawn, "describe", lambda self: {"drawn": "2"})
    with pytest.raises(
        EvaluationError, match=r"was begun with something else \(drawn: 1 there, 2 here\); go back to that"
    ):
        _run(plan)


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    plan.output.mkdir()
    with FileLock(plan.output / ".lock"), pytest.raises(EvaluationError, match="another evaluation writes to"):
        _run(plan)


# --- What dies ------------------------------------------------------------------------------------------------


def test_workers_that_die_at_random_change_nothing(tmp_path: Path, times: int) -> None:
    lines = [f"prompt {n}" for n in range(7 * times)]
    expected = _undisturbed(tmp_path, lines=lines)
    plan = _plan(tmp_path, lines)
    killed = kill_at_random(
        lambda: evaluate(plan, lambda: LocalWorker(fakes.job(plan, seconds=0.05))), plan, WORKER_KILLS * times
    )
    assert killed >= times
    assert _files(plan.output) == expected


def kill_at_random(run: Callable[[], object], plan: Plan, kills: int, command: str = "spawn_main") -> int:
    """Kill a random worker process of ours after a random time, each time that a batch was finished; how often."""
    ended, killed = threading.Event(), 0

    def shards() -> int:
        return len(list(plan.output.glob("shards/*/*.csv")))

    def killer() -> None:
        nonlocal killed
        seen = -1
        while killed < kills and not ended.wait(random.random() * 0.1):
            found = _descendants(os.getpid(), command)
            if found and shards() > seen:
                seen = shards()
                random.choice(found).kill()
                killed += 1

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        run()
    finally:
        ended.set()
        thread.join()
    return killed


def _descendants(pid: int, command: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if command in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_driver_that_is_killed_goes_on_and_leaves_no_worker(tmp_path: Path, times: int) -> None:
    lines = [f"prompt {n}" for n in range(7 * times)]
    expected = _undisturbed(tmp_path, lines=lines)
    plan = _plan(tmp_path, lines)
    kill_drivers(tmp_path / "plan.yaml", plan, DRIVER_KILLS * times, actors=0)
    assert _files(plan.output) == expected


def kill_drivers(file: Path, plan: Plan, kills: int, actors: int) -> None:
    """Start the evaluation, kill it when a batch more is there, and again; the last one ends."""
    command = [sys.executable, str(Path(fakes.__file__)), str(file), "0.05", str(actors)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    done = 0
    for _ in range(kills):
        driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            while driver.poll() is None and len(list(plan.output.glob("shards/*/*.csv"))) <= done:
                time.sleep(0.01)
            time.sleep(random.random() * 0.1)
            started = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
            names = {child: " ".join(child.as_dict(["cmdline"], [])["cmdline"]) for child in started}
        finally:
            driver.kill()
            driver.wait()
        done = len(list(plan.output.glob("shards/*/*.csv")))
        _, alive = psutil.wait_procs(
            [child for child in started if not actors or RAY_WORKER in names[child]], timeout=30
        )
        assert not alive
        # Agents of Ray stay where the driver of a local cluster dies, with or without anything of ours.
        _, alive = psutil.wait_procs(started, timeout=0)
        for process in alive:
            process.kill()
    subprocess.run(command, env=environment, check=True, capture_output=True)


def test_workers_that_always_die_end_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GIVE_UP_AFTER", 0)
    plan = _plan(tmp_path)
    with pytest.raises(EvaluationError, match="^2 workers died one after another"):
        evaluate(plan, lambda: LocalWorker(fakes.job(plan, fakes.Dying)))
    assert set(_files(plan.output)) == {".lock", "manifest.json"}


def test_a_refusal_of_the_worker_ends_the_evaluation(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    with pytest.raises(EvaluationError, match=r"^pairs\[0\]: there is no such thing; give another\.$"):
        evaluate(plan, lambda: LocalWorker(fakes.job(plan, fakes.Refusing)))
    assert not plan.output.exists()


@pytest.fixture
def ray_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers find the fakes as a driver of its own would."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@needs_ray
@pytest.mark.usefixtures("ray_path")
def test_any_number_of_ray_workers_that_die_at_random_give_the_same_files(tmp_path: Path) -> None:
    from evaluation.ray_workers import RayWorkers

    expected = _undisturbed(tmp_path)
    for count, kills in ((1, 0), (4, 2)):
        folder = tmp_path / str(count)
        folder.mkdir()
        plan = _plan(folder)

        def run(plan: Plan = plan, count: int = count) -> None:
            evaluate(plan, lambda: RayWorkers(fakes.job(plan, seconds=0.2), "local", count))

        assert kill_at_random(run, plan, kills, command=RAY_WORKER) <= kills
        assert _files(plan.output) == expected


@needs_ray
@pytest.mark.parametrize(
    ("machines", "threads", "wanted", "found"),
    [
        # Of a machine with GPUs and one without: cores beside a GPU are what its workers share.
        ([{"GPU": 8, "CPU": 64}, {"CPU": 16}], 64, None, (8, {"num_gpus": 1, "num_cpus": 8})),
        ([{"GPU": 1, "CPU": 4}, {"GPU": 4, "CPU": 8}], 3, 2, (2, {"num_gpus": 1, "num_cpus": 2})),
        # A worker has all of its cores on one machine.
        ([{"CPU": 3}, {"CPU": 5}], 2, None, (3, {"num_cpus": 2})),
        ([{"CPU": 3}, {"CPU": 3}], 4, None, "threads: no worker with 4 fits a machine of 3 cores; lower it."),
        ([{"CPU": 4}], 2, 3, "--workers: the cluster has room for 2, not for 3; ask for fewer."),
    ],
)
def test_a_cluster_has_room_for_workers_machine_by_machine(
    monkeypatch: pytest.MonkeyPatch, machines: list[dict[str, int]], threads: int, wanted: int | None, found: Any
) -> None:
    from evaluation import ray_cluster

    gone = {"Alive": False, "Resources": {"GPU": 8, "CPU": 640}}
    nodes = [gone, *({"Alive": True, "Resources": resources} for resources in machines)]
    monkeypatch.setattr(ray_cluster.ray, "nodes", lambda: nodes)
    if isinstance(found, str):
        with pytest.raises(EvaluationError, match=f"^{re.escape(found)}$"):
            ray_cluster.room(threads, wanted)
    else:
        assert ray_cluster.room(threads, wanted) == found


@needs_ray
def test_a_driver_of_ray_that_is_killed_goes_on_and_leaves_no_worker(tmp_path: Path) -> None:
    expected = _undisturbed(tmp_path)
    plan = _plan(tmp_path)
    kill_drivers(tmp_path / "plan.yaml", plan, 1, actors=2)
    assert _files(plan.output) == expected


@needs_ray
def test_ray_workers_that_lack_a_module_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the fakes; on a cluster the extension, where a node has it somewhere else."""
    from evaluation.ray_workers import RayWorkers

    monkeypatch.delenv("PYTHONPATH", raising=False)
    plan = _plan(tmp_path)
    with pytest.raises(EvaluationError, match=r"^--ray: a worker cannot work \(.*evaluation_fakes.*\); ComfyUI"):
        evaluate(plan, lambda: RayWorkers(fakes.job(plan), "local", 1))
    assert not plan.output.exists()


@needs_ray
@pytest.mark.usefixtures("ray_path")
@pytest.mark.parametrize(
    ("renderer", "message"),
    [
        (fakes.Refusing, r"pairs\[0\]: there is no such thing; give another\."),
        (fakes.Unlike, r"--ray: the workers are not alike \(process: \d+ there, \d+ here\); make them so"),
    ],
)
def test_ray_workers_that_cannot_work_end_the_evaluation(
    tmp_path: Path, renderer: type[fakes.Drawn], message: str
) -> None:
    from evaluation.ray_workers import RayWorkers

    plan = _plan(tmp_path)
    with pytest.raises(EvaluationError, match=f"^{message}"):
        evaluate(plan, lambda: RayWorkers(fakes.job(plan, renderer), "local", 2))
    assert not plan.output.exists()


def test_ray_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray_cluster", "ray_workers"):
        monkeypatch.delitem(sys.modules, f"evaluation.{name}", raising=False)
    assert carry_out(parse([str(_write_plan(tmp_path)), "--host", HOST, "--ray", "auto"])) == 1
    assert "Error: --ray: Ray is not installed; run `pip install ray`" in capsys.readouterr().err


# --- The summary ----------------------------------------------------------------------------------------------


def test_the_summary_compares_pictures_of_the_same_prompt_and_seed(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    _run(plan)
    names = ["scale_0.0", "scale_1.6", "scale_1.0", "scale_0-0_0.5-1"]
    scores = {
        name: np.array(
            [float(row["first_score"]) for row in _table(plan.output / "one" / name / "evaluation_results.csv")]
        )
        for name in names
    }
    rows = [row for row in _table(plan.output / "summary.csv") if row["reward"] == "first"]
    assert [(row["scale"], row["schedule"]) for row in rows] == [
        ("0", ""), ("1.6", ""), ("1", ""), ("", "0:0, 0.5:1")
    ]  # fmt: skip
    for name, row in zip(names, rows, strict=True):
        assert float(row["mean"]) == pytest.approx(scores[name].mean(), rel=1e-5)
        for column, baseline in (("win_rate_vs_0", "scale_0.0"), ("win_rate_vs_1", "scale_1.0")):
            if name == baseline:
                assert row[column] == ""
            else:
                assert float(row[column]) == pytest.approx((scores[name] > scores[baseline]).mean(), rel=1e-5)
        for column, baseline in (("above_base", "scale_0.0"), ("above_tuned", "scale_1.0")):
            differences = (scores[name] - scores[baseline]).reshape(7, 2).mean(axis=1)
            assert float(row[column]) == pytest.approx(differences.mean(), rel=1e-5, abs=1e-9)
            (low, high) = (float(row[f"{column}_{end}"]) for end in ("low", "high"))
            assert low <= float(row[column]) <= high and (low < high) == (np.ptp(differences) > 0)
    text = (plan.output / "summary.md").read_text(encoding="utf-8")
    assert (
        "7 prompts × 2 seeds" in text
        and "above s = 1" in text
        and "wins against s = 1" in text
        and "| s = 1.6 " in text
    )


def test_ties_are_half_a_win(tmp_path: Path) -> None:
    plan = _plan(tmp_path, scales=[0, 1], schedules=[], rewards=["r"], seeds=[1])
    values = np.zeros((2, 3, 1, 2))
    values[1, :, 0, 0] = [1, 0, -1]
    (_, tuned) = summary.points(plan, "one", values)
    assert tuned.win_rates[0.0].mean == 0.5 and tuned.diversity is None


def test_one_prompt_is_summed_up_without_intervals(tmp_path: Path) -> None:
    plan = _plan(tmp_path, ["the only one"])
    _run(plan)
    rows = _table(plan.output / "summary.csv")
    assert all(row["mean"] and not row["mean_low"] and not row["mean_high"] for row in rows)


def test_a_plan_without_rewards_measures_diversity(tmp_path: Path) -> None:
    plan = _plan(tmp_path, rewards=[])
    _run(plan)
    rows = _table(plan.output / "summary.csv")
    assert [float(row["diversity"]) for row in rows] == pytest.approx([np.mean(np.arange(7) / 8) + n for n in range(4)])


# --- The command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "changes", "options", "message"),
    [
        ([], {}, [], "prompts: file: prompts.txt holds no prompt"),
        (None, {"prompts": {"file": "gone.txt"}}, [], "prompts: file: "),
        (None, {"output": "/proc/rlg"}, [], "/proc"),
        (None, {"output": "prompts.txt/out"}, [], "prompts.txt"),
        (None, {}, ["--models", "/gone"], "--models: there is no folder /gone"),
        (None, {}, ["--workers", "4"], "--workers: they are counted on Ray alone; add --ray local, or leave it out."),
        (None, {}, ["--", "--cuda-device", "1"], "--cuda-device: only ComfyUI's main.py"),
        (None, {}, ["--", "--lowvram", "--default-device=1"], "--default-device: only ComfyUI's main.py"),
        (None, {}, ["--", "--cuda-d=1"], "--cuda-d: only ComfyUI's main.py"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    prompts: list[str] | None,
    changes: dict[str, Any],
    options: list[str],
    message: str,
) -> None:
    file = _write_plan(tmp_path, prompts, **changes)
    assert carry_out(parse([str(file), "--host", HOST, *options])) == 1
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("Error: ") and message in errors and "\n" not in errors
    assert {path.name for path in tmp_path.iterdir()} == {"plan.yaml", "prompts.txt"}


def test_what_follows_two_dashes_is_comfyuis(tmp_path: Path) -> None:
    options = parse([str(tmp_path), "--host", HOST, "--", "--lowvram", "--fast"])
    assert options.comfyui == ("--lowvram", "--fast") and options.plan == tmp_path


@pytest.mark.parametrize("program", ["evaluation", "training"])
def test_the_folder_of_a_program_can_be_run(tmp_path: Path, program: str) -> None:
    """As on Windows portable, whose Python looks for modules neither in the current folder nor beside."""
    command = [sys.executable, "-I", str(REPO / program), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert run.returncode == 0 and run.stdout.startswith(f"usage: python -m {program} "), run.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_ends_a_program_but_under_nohup() -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(SystemExit, match=str(128 + signal.SIGHUP)):
            carried_out(lambda: os.kill(os.getpid(), signal.SIGHUP))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which nohup leaves to what it starts
        assert carried_out(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def test_words_that_a_pipe_cannot_take_end_nothing() -> None:
    """A pipe or a file on Windows is written in the code page of the country."""
    program = (
        "from evaluation.command_line import carried_out; raise SystemExit(carried_out(lambda: print('3 \u2192 4')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, cwd=REPO, env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "3 \\u2192 4\n"), run.stderr


def test_a_wait_for_a_worker_hears_of_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a wait without an end hears of nothing."""
    limits = []

    def wait(futures: Any, timeout: float | None = None, return_when: str = ALL_COMPLETED) -> Any:
        limits.append(timeout)
        return futures_wait(futures, timeout, return_when)

    monkeypatch.setattr(local, "wait", wait)
    plan = _plan(tmp_path, ["one"])
    evaluate(plan, lambda: LocalWorker(fakes.job(plan)))
    assert limits and all(limit is not None and limit <= 1.0 for limit in limits)


def test_a_plot_names_the_tuned_model_where_a_picture_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the end of a ramp."""
    drawn = []
    monkeypatch.setattr(
        plots, "reward_curve", lambda curve, *rest: drawn.append(curve.has_constant) or reward_curve(curve, *rest)
    )
    ramps = [{"ramp": {"end_scale": 1}}, {"ramp": {"end_scale": 2}}]
    for folder, scales in (("ramps", []), ("both", [1])):
        (tmp_path / folder).mkdir()
        _run(_plan(tmp_path / folder, scales=scales, schedules=ramps, rewards=["r"]))
    assert drawn == [False, True]


def test_the_bundled_plan_is_one() -> None:
    plan = load_plan(REPO / "evaluation" / "demo.yaml")
    assert {0.0, 1.0} <= {cell.scale for cell in plan.cells}
    assert len(plan.prompts.read()) == plan.prompts.count
