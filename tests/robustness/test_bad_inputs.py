"""Generated bad inputs: each is used, or refused in one sentence that names its input, within two seconds.

`--times 40` tries 40 times as many.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evaluation.errors import EvaluationError
from evaluation.plan import load_plan
from files.prompts import read_prompts
from pairs import task

TRIES = 40
LONGEST_WAIT = 2.0
"""Seconds, of this process: other processes of a busy machine do not count."""
LONGEST_SENTENCE = 700
NUMBERS: list[Any] = [
    0,
    -1,
    1e309,
    float("nan"),
    1e-320,
    10**30,
    True,
    None,
    "8",
    "",
    [],
    {},
    [8],
    2.5,
    "\0",
    "x" * 5000,
]
NAMES = [
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "C:\\windows\\win.ini", "\\\\server\\share", "a\0b", "x" * 400,
    "é" * 150, "CON", "a/../../b", "~root", "$HOME", "%APPDATA%", "\ud800", "a\nb", "-rf", "a" * 90 + "/" + "b" * 400,
    "日" * 90,
]  # fmt: skip


@contextlib.contextmanager
def one_sentence(start: str | tuple[str, ...], kinds: type[Exception] = ValueError) -> Iterator[None]:
    """Either nothing is wrong, or one sentence says what."""
    started = time.process_time()
    try:
        yield
    except kinds as error:
        message = str(error)
        assert message.startswith(start) and message.endswith(".") and message.isprintable(), repr(message)
        assert len(message) < LONGEST_SENTENCE, message
    assert time.process_time() - started < LONGEST_WAIT


def changed(value: Any, dice: random.Random) -> Any:
    """A JSON value with something in it replaced, removed, doubled or nested."""
    value = copy.deepcopy(value)
    holder, key = None, None
    place = value
    while isinstance(place, dict | list) and place and (holder is None or dice.random() < 0.8):
        holder, key = place, dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place = place[key]
    if holder is None:
        return dice.choice(NUMBERS)
    how = dice.randrange(4)
    if how == 0 and isinstance(holder, dict):
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[dice.choice(NAMES)] = holder[key]
    elif how == 2:
        holder[key] = [holder[key]] * dice.choice([1, 2, 1000])
    else:
        holder[key] = dice.choice([*NUMBERS, *NAMES])
    return value


def damaged(data: bytes, dice: random.Random) -> bytes:
    """A file cut short, with bytes changed (the first ones are its header), or with a lie about its length."""
    how = dice.randrange(4)
    if how == 0:
        return data[: dice.randrange(len(data))]
    if how == 1:
        return dice.choice([2**63, 2**64 - 1, 2**31, 0, len(data)]).to_bytes(8, "little") + data[8:]
    whole = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        whole[dice.randrange(min(len(whole), 2000) if how == 2 else len(whole))] = dice.randrange(256)
    return bytes(whole)


def changed_tensors(weights: dict[str, torch.Tensor], dice: random.Random) -> dict[str, torch.Tensor]:
    weights = dict(weights)
    for _ in range(dice.randint(1, 3)):
        key = dice.choice(list(weights))
        tensor = weights.pop(key)
        how = dice.randrange(7)
        if how == 0:
            continue
        if how == 1:
            key = dice.choice([key.replace(".weight", ""), f"{key}.alpha", key[: len(key) // 2], key + "\n", "x" * 999])
        elif how == 2:
            kinds = [torch.int8, torch.bool, torch.complex64, torch.float64, torch.float16, torch.float8_e4m3fn]
            tensor = tensor.to(dice.choice(kinds))
        elif how == 3:
            tensor = torch.zeros([dice.choice([0, 1, 8, 128, 200]) for _ in range(dice.randrange(5))])
        elif how == 4:
            tensor = torch.full_like(tensor, dice.choice([float("nan"), float("inf"), 3e38, 0.0]))
        elif how == 5:
            tensor = tensor.T.contiguous()
        else:
            kinds = [
                ".hada_w1_a",
                ".lokr_w1",
                ".oft_blocks",
                ".a1.weight",
                ".diff",
                ".diff_b",
                ".set_weight",
                ".dora_scale",
            ]
            key = key.rpartition(".lora_")[0] + dice.choice(kinds)
        weights[key] = tensor
    return weights


@pytest.fixture
def good_lora(checkpoint: Path, models_dir: Path) -> Path:
    return models_dir / "loras" / checkpoint.stem


@pytest.mark.parametrize("kind", ["bytes", "tensors", "config", "text of the config"])
def test_lora_files(base: Any, good_lora: Path, models_dir: Path, run_node: Callable, times: int, kind: str) -> None:
    """What loads can also be sampled with, and gives a picture."""
    dice = random.Random(f"lora {kind}")
    file, config = good_lora / "adapter_model.safetensors", good_lora / "adapter_config.json"
    bad = models_dir / "loras" / "bad"
    bad.mkdir(exist_ok=True)
    for number in range(TRIES * times):
        data, text = file.read_bytes(), config.read_text()
        if kind == "bytes":
            data = damaged(data, dice)
        elif kind == "config":
            text = json.dumps(changed(json.loads(text), dice))
        elif kind == "text of the config":
            text = damaged(text.encode(), dice).decode("latin-1")
        if kind == "tensors":
            save_file(changed_tensors(load_file(file), dice), bad / file.name)
        else:
            (bad / file.name).write_bytes(data)
        (bad / config.name).write_text(text, encoding="utf-8")
        with one_sentence("lora_name:"):
            tuned, report = run_node("RLGLoadLora", model=base, lora_name="bad", strength=1.0)
            assert report.isprintable()
            with contextlib.suppress(ValueError):  # nothing to guide
                run = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1))
                assert kind == "bytes" or run[0]["samples"].isfinite().all(), number


def test_names(
    base: Any, run_node: Callable, rlg: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing outside the host's folders is read or written."""
    for kind in ("input", "output"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    picture = torch.zeros(1, 8, 8, 3)
    for name in NAMES:
        with one_sentence("file:"):
            run_node("RLGLoadPrompts", file=name, column="prompt", start=0, count=0, shuffle_seed=0)
        with one_sentence("lora_name:"):
            run_node("RLGLoadLora", model=base, lora_name=name, strength=1.0)
        with one_sentence(("filename_prefix:", "tuned:")):
            run_node("RLGExtractLora", base=base, tuned=base, rank=4, filename_prefix=name)
        with one_sentence("name:"):
            assert rlg.module("nodes.training")._places(name)[0].parent == tmp_path / "output" / "loras"
        with one_sentence("folder:"):
            run_node("RLGLoadImages", folder=name, width=8, height=8)
        of_set = {"prompt": ["a"], "folder": [name], "seed": [1], "scale": [1.0], "model": ["m"], "lora": ["l"]}
        with one_sentence(("folder:", "prompt:")):
            run_node("RLGSaveSet", images=[picture], **of_set)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "output"]
    made = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in made if name.startswith(".") or min(name) < " "]


def test_prompt_files(tmp_path: Path, times: int) -> None:
    dice = random.Random("prompts")
    good = 'id,prompt\n1,"a cat, sitting"\n2,日本語\n'.encode()
    lines = b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n'
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "shift_jis"]
    for _ in range(5 * TRIES * times):
        suffix = dice.choice([".txt", ".csv", ".jsonl", ".yaml", ""])
        data = damaged(lines if suffix == ".jsonl" else good, dice)
        if dice.random() < 0.3:
            data = data.decode("utf-8", "ignore").encode(dice.choice(encodings), "ignore")
        if dice.random() < 0.1:
            data = dice.choice([b"[" * 200_000, b"9" * 10_000, b'"' * 1001, b"\0" * 100, b"," * 10_000, b"a" * 200_000])
        file = tmp_path / f"prompts{suffix}"
        file.write_bytes(data)
        with one_sentence(("file:", "column:", "start:")):
            prompts = read_prompts(file, dice.choice(["prompt", "id", ""]), start=dice.randrange(3))
            assert prompts and all(prompt == prompt.strip() != "" for prompt in prompts)


def test_keyframes_and_lists(rlg: SimpleNamespace, run_node: Callable, times: int) -> None:
    dice = random.Random("keyframes")
    parts = [
        *"0123456789.:, \n-+eE_x",
        "0..1/3",
        "1e-999999",
        "1e999999",
        "0:1",
        "0.5:2",
        "nan",
        "inf",
        "1e999",
        "٣",
        "１",
        "\u2028",
        "0:" + "9" * 400,
        "1:1:1",
    ]
    for _ in range(25 * TRIES * times):
        text = "".join(dice.choice(parts) for _ in range(dice.randrange(12)))
        with one_sentence("keyframes:"):
            (schedule,) = run_node("RLGKeyframes", keyframes=text, interpolation=dice.choice(["step", "linear"]))[:1]
            assert all(-10 <= scale <= 10 for scale in schedule.per_step(7))
        with one_sentence(("scales:", "switch_percents:")):
            rlg.module("nodes.sweep").cells(text, dice.choice(["", text]))


PLAN = {
    "output": "out", "pairs": [{"checkpoint": "a.safetensors", "lora": "b.safetensors"}], "prompts": {"file": "p.txt"},
    "seeds": [1, 2], "scales": [0, 1.6], "schedules": [{"ramp": {"power": 3.0}}], "steps": 4, "rewards": ["jpeg"],
}  # fmt: skip


def test_plans(tmp_path: Path, times: int) -> None:
    dice, file = random.Random("plans"), tmp_path / "plan.yaml"
    bomb = "a: &a [1,1,1,1,1,1,1,1]\n"
    bomb += "".join(f"{y}: &{y} [{','.join(['*' + x] * 8)}]\n" for x, y in zip("abcdefghi", "bcdefghij", strict=True))
    for number in range(5 * TRIES * times):
        plan = changed(PLAN, dice)
        if dice.random() < 0.5 and isinstance(plan, dict):
            plan = changed(plan, dice)
        text = yaml.safe_dump(plan, allow_unicode=True)
        if dice.random() < 0.2:
            text = damaged(text.encode(), dice).decode("latin-1")
        if number < 3:
            text = [bomb + "scales: *j\n", "[" * 100_000, "!!python/object/apply:os.system [exit]"][number]
        file.write_text(text, encoding="utf-8", errors="replace")
        with one_sentence(str(file), EvaluationError):
            load_plan(file)
