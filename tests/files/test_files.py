"""Prompt files are read as they are, from the input folder alone; a saved set is whole and without doubles."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from files import pictures as files_pictures
from files.pictures import COLUMNS, Entry, PictureSet, folder_name
from files.prompts import read_prompts
from files.replacing import replacing

# What a prompt can hold in a line of its own; \r and \n end one.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r\n"), min_size=1).filter(str.strip)
SURPRISES = [
    "a\u2028line\u2029separator", "\u202eright to left", "e\u0301 and é", "👩‍👩‍👧‍👦 family", 
    "tab\tand \x85 next", '"quoted", with commas', "日本語の　猫", "\ufeffbom within", "x" * 5000,
    "=1+1", "\U0010ffff",
]  # fmt: skip


@pytest.fixture
def input_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(folder))
    return folder


@pytest.fixture
def output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def _write(path: Path, prompts: list[str]) -> Path:
    """Prompts in the format that the file's name says, by Python's own writers."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".txt":
            file.write("".join(f"{prompt}\r\n" for prompt in prompts))
        elif path.suffix == ".csv":
            csv.writer(file).writerows([["id", "prompt"], *enumerate(prompts)])
        else:
            file.write("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
@given(prompts=st.lists(TEXT, min_size=1, max_size=5))
def test_every_prompt_comes_back(tmp_path_factory: pytest.TempPathFactory, suffix: str, prompts: list[str]) -> None:
    prompts = [*prompts, *SURPRISES]
    file = _write(tmp_path_factory.mktemp("prompts") / f"file{suffix}", prompts)
    assert read_prompts(file) == [prompt.strip() for prompt in prompts]


@given(count=st.integers(1, 30), start=st.integers(0, 29), take=st.integers(0, 40), seed=st.integers(0, 2**64 - 1))
def test_a_part_of_the_shuffled_file(
    tmp_path_factory: pytest.TempPathFactory, count: int, start: int, take: int, seed: int
) -> None:
    whole = [f"prompt {n}" for n in range(count)]
    file = _write(tmp_path_factory.mktemp("prompts") / "file.txt", whole)
    if seed:
        random.Random(seed).shuffle(whole)
    if start >= count:
        with pytest.raises(ValueError, match=f"^start: file.txt has {count} prompts"):
            read_prompts(file, start=start, count=take, shuffle_seed=seed)
    else:
        expected = whole[start:] if take == 0 else whole[start : start + take]
        assert read_prompts(file, start=start, count=take, shuffle_seed=seed) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "file: empty.txt holds no prompt"),
        ("blank.txt", b" \n\t\n\xe3\x80\x80\n", "file: blank.txt holds no prompt"),
        ("latin.txt", b"caf\xe9\n", "file: latin.txt is not UTF-8"),
        ("utf16.txt", "a cat".encode("utf-16"), "file: utf16.txt is not UTF-8"),
        ("data.json", b"[]", "file: data.json is of no kind"),
        ("no.csv", b"text,id\na,1\n", "column: 'prompt' is not in the header of no.csv (it has text, id)"),
        ("none.csv", b"", "column: 'prompt' is not in the header of none.csv (it is empty)"),
        ("two.csv", b"prompt,prompt\na,b\n", "column: 'prompt' is twice in the header"),
        ("short.csv", b"id,prompt\n1\n", "file: line 2 of short.csv ends before"),
        ("open.csv", b'prompt\n"a\n', "file: line 1 of open.csv is no CSV"),
        ("bad.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "file: line 2 of bad.jsonl is no JSON"),
        ("other.jsonl", b'{"text": "a"}\n', "column: line 1 of other.jsonl has no 'prompt' (it has text)"),
        ("number.jsonl", b'{"prompt": 3}\n', "file: line 1 of number.jsonl holds no text"),
        ("nul.txt", b"a\0b\n", "file: nul.txt holds a NUL"),
        ("long.txt", b"x" * 100_001, "file: long.txt holds a prompt of 100001 characters"),
        ("half.jsonl", b'{"prompt": "\\ud800"}\n', "file: line 1 of half.jsonl holds half a character"),
    ],
)
def test_files_that_are_none_are_one_sentence(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_prompts(tmp_path / name)
    sentence = str(caught.value)
    assert sentence.startswith(message) and sentence.endswith(".") and "\n" not in sentence


def test_the_node_reads_the_input_folder_and_nothing_else(
    input_folder: Path, run_node: Callable, rlg: SimpleNamespace
) -> None:
    (input_folder / "sub").mkdir()
    _write(input_folder / "sub" / "in.txt", ["one", "two"])
    outside = _write(input_folder.parent / "out.txt", ["secret"])
    (input_folder / "link.txt").symlink_to(outside)
    (input_folder / "inner.txt").symlink_to(input_folder / "sub" / "in.txt")
    (input_folder / "linked").symlink_to(input_folder.parent, target_is_directory=True)
    (combo,) = [i for i in rlg.nodes["RLGLoadPrompts"].define_schema().inputs if i.id == "file"]
    assert combo.options == ["inner.txt", "sub/in.txt"]

    inputs = {"column": "prompt", "start": 0, "count": 0, "shuffle_seed": 0}
    assert run_node("RLGLoadPrompts", file="sub/in.txt", **inputs) == (["one", "two"],)
    for name in ("../out.txt", str(outside), "link.txt", "linked/out.txt", "sub/../../out.txt"):
        with pytest.raises(ValueError, match="is not inside ComfyUI's input folder"):
            run_node("RLGLoadPrompts", file=name, **inputs)
    with pytest.raises(ValueError, match="put it there, press R"):
        run_node("RLGLoadPrompts", file="gone.txt", **inputs)


def test_a_changed_file_is_read_again(input_folder: Path, rlg: SimpleNamespace) -> None:
    """The host asks for a fingerprint before it takes what it has from the last run."""
    node, file = rlg.nodes["RLGLoadPrompts"], _write(input_folder / "in.txt", ["one"])
    before = node.fingerprint_inputs(file="in.txt")
    assert before == node.fingerprint_inputs(file="in.txt")
    _write(file, ["one", "two"])
    assert before != node.fingerprint_inputs(file="in.txt")
    linked = node.fingerprint_inputs(file=None, column="prompt", start=0, count=0, shuffle_seed=0)
    assert linked is None, "an error here would be a change at every run"


def test_the_host_runs_what_follows_once_for_each_prompt(input_folder: Path, output_folder: Path, rlg: Any) -> None:
    """By the host's own executor; the set takes the list that comes back, and keeps the workflow in its files."""
    import execution

    _write(input_folder / "in.txt", SURPRISES[:3])
    graph = {
        "p": _node("RLGLoadPrompts", file="in.txt", column="prompt", start=0, count=0, shuffle_seed=0),
        "each": _node("PrimitiveString", value=["p", 0]),
        "i": _node("EmptyImage", width=8, height=8, batch_size=3, color=255),
        "s": _node(
            "RLGSaveSet", images=["i", 0], prompt=["each", 0], folder="set", seed=3, scale=1.0, model="m", lora="l"
        ),
    }
    events: list[tuple[str, Any]] = []
    server = SimpleNamespace(
        client_id="test", last_node_id=None, last_prompt_id=None, send_sync=lambda *event: events.append(event[:2])
    )
    executor = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
    asyncio.run(executor.execute_async(graph, "id", {"client_id": "test"}, ["s"]))
    assert executor.success, [event for event in events if "error" in event[0]]
    rows = _table(output_folder / "set" / "scale_1.0")
    assert [row["prompt"] for row in rows] == SURPRISES[:3]
    picture = Image.open(output_folder / "set" / "scale_1.0" / rows[0]["image_path"])
    assert json.loads(picture.info["prompt"]).keys() == graph.keys()


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 8, 12, 3, generator=torch.Generator().manual_seed(seed))


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def save(run_node: Callable, output_folder: Path) -> Callable[..., str]:
    def run(images: list[torch.Tensor], prompt: list[str], **changes: Any) -> str:
        inputs = {"folder": ["set"], "seed": [3], "scale": [1.6], "model": ["base"], "lora": ["tuned"], **changes}
        return run_node("RLGSaveSet", images=images, prompt=prompt, **inputs)[0]

    return run


def test_layout_of_the_reference(save: Callable, output_folder: Path, run_node: Callable) -> None:
    """scale_<s>/<number>.png with a metadata.csv, whose image_path its scripts join to the folder's name."""
    images = _pictures(3)
    save([images], ["a cat"], scale=[0.0, 1.0, 1.6])
    folders = sorted(path.name for path in (output_folder / "set").iterdir())
    assert folders == ["scale_0.0", "scale_1.0", "scale_1.6"]
    for folder, image in zip(folders, images, strict=True):
        (row,) = _table(output_folder / "set" / folder)
        assert row == {
            "image_path": "00000.png", "prompt": "a cat", "seed": "3", "scale": folder.removeprefix("scale_"),
            "schedule": "", "model": "base", "lora": "tuned",
        }  # fmt: skip
        saved = np.asarray(Image.open(output_folder / "set" / folder / row["image_path"]))
        run_node("SaveImage", images=image[None], filename_prefix=f"host_{folder}")
        (by_host,) = output_folder.glob(f"host_{folder}*.png")
        assert np.array_equal(saved, np.asarray(Image.open(by_host)))


def test_labels_of_a_sweep_name_scale_switch_and_seed(save: Callable, output_folder: Path, rlg: Any) -> None:
    cells = rlg.module("rlg_sampler.sweeps.sweep").cells("0, 1.6", "0.2, 0.5")
    labels = rlg.module("rlg_sampler.sweeps.labels").labels([cell.label for cell in cells], 2, 7)
    save([_pictures(8)], ["a cat"], labels=labels)
    rows = {folder.name: _table(folder) for folder in (output_folder / "set").iterdir()}
    assert {name: len(of_folder) for name, of_folder in rows.items()} == {
        "scale_0.0": 4, "scale_0-0_0.2-1.6": 2, "scale_0-0_0.5-1.6": 2,
    }  # fmt: skip
    assert {row["seed"] for of_folder in rows.values() for row in of_folder} == {"7"}
    assert rows["scale_0-0_0.5-1.6"][0]["schedule"] == "0:0, 0.5:1.6"


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"], ["a", "a", "b", "b"]])
def test_prompts_for_all_for_each_batch_or_for_each_picture(
    save: Callable, output_folder: Path, prompts: list[str]
) -> None:
    save([_pictures(2), _pictures(2, seed=1)], prompts)
    expected = {1: ["a"] * 4, 2: ["a", "a", "b", "b"], 4: prompts}[len(prompts)]
    assert [row["prompt"] for row in _table(output_folder / "set" / "scale_1.6")] == expected


def test_running_again_adds_what_is_missing_and_nothing_else(save: Callable, output_folder: Path) -> None:
    first, second = _pictures(2), _pictures(2, seed=1)
    save([first], ["a"])
    before = _files(output_folder)
    assert save([first], ["a"]).startswith("0 pictures") and _files(output_folder) == before
    assert "2 were there already" in save([first, second], ["a"])
    rows = _table(output_folder / "set" / "scale_1.6")
    assert [row["image_path"] for row in rows] == [f"{n:05d}.png" for n in range(4)]
    assert before.items() - _files(output_folder).items() == {
        item for item in before.items() if item[0].endswith(".csv")
    }
    save([first], ["another prompt"])
    assert len(_table(output_folder / "set" / "scale_1.6")) == 6


def test_a_file_is_read_once_however_many_pictures_have_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a batch of one seed has; each would otherwise be compared with every file."""
    looks: list[str] = []
    pixels = files_pictures._pixels
    monkeypatch.setattr(files_pictures, "_pixels", lambda path: looks.append(path.name) or pixels(path))
    pictures = [np.full((4, 4, 3), n, np.uint8) for n in range(5)]
    entry = Entry("a", 1, 1.0, "", "m", "l")
    names = [f"{n:05d}.png" for n in range(5)]
    assert [path.name for path in PictureSet(tmp_path).add(pictures, [entry] * 5)] == names and not looks
    (tmp_path / "scale_1.0" / names[2]).unlink()
    again = [pictures[0], *pictures[3:], np.full((4, 4, 3), 9, np.uint8), pictures[2], pictures[2]]
    written = PictureSet(tmp_path).add(again, [entry] * 6)
    assert [path.name for path in written] == [names[2], "00005.png"] and sorted(looks) == names


def test_pictures_of_another_shape_are_others(tmp_path: Path) -> None:
    """Also where their bytes are the same, as of white ones."""
    pictures = [np.full(shape, 255, np.uint8) for shape in ((4, 6, 3), (6, 4, 3), (3, 6, 4), (4, 6, 3))]
    for expected in (3, 0):
        assert len(PictureSet(tmp_path).add(pictures, [Entry("a", 1, 1.0, "", "m", "l")] * 4)) == expected


def test_each_picture_is_written_before_the_next_is_converted(
    save: Callable, rlg: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of all of them at 8 bits would be a quarter of what they take."""
    events: list[str] = []
    for module, name in (("nodes.files", "to_bytes"), ("files.pictures", "write_bytes")):
        real = getattr(rlg.module(module), name)
        monkeypatch.setattr(
            rlg.module(module), name, lambda *args, name=name, real=real: events.append(name) or real(*args)
        )
    assert save([_pictures(2), _pictures(1, seed=1)], ["a"]).startswith("3 pictures saved")
    assert events == ["to_bytes", "write_bytes"] * 3


def test_a_stop_in_the_middle_leaves_a_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file operation fails, what the table names is there; the next run ends as an undisturbed one."""
    pictures = [np.full((4, 4, 3), n, np.uint8) for n in range(3)]
    entries = [Entry(f"with\rline\nends {n}", n, 1.0, "", "m", "l") for n in range(3)]
    PictureSet(tmp_path / "whole").add(pictures, entries)
    replace = os.replace
    for fails_at in range(4):
        root, calls = tmp_path / str(fails_at), iter(range(9))

        def full_disk(*args: Any, fails_at: int = fails_at, calls: Any = calls) -> None:
            if next(calls) == fails_at:
                raise OSError(28, "No space left on device")
            replace(*args)

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            PictureSet(root).add(pictures, entries)
        monkeypatch.undo()
        assert not list(root.rglob("*.tmp")) and not list(root.rglob("metadata.csv"))
        PictureSet(root).add(pictures, entries)
        assert _files(root) == _files(tmp_path / "whole")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:150])])
def test_a_picture_that_is_gone_or_damaged_is_saved_again_under_its_name(
    save: Callable, output_folder: Path, damage: Callable[[Path], Any]
) -> None:
    save([_pictures(3)], ["a"])
    before = _files(output_folder)
    damage(output_folder / "set" / "scale_1.6" / "00001.png")
    assert save([_pictures(3)], ["a"]).startswith("1 pictures")
    assert _files(output_folder) == before


@pytest.mark.parametrize(
    "table",
    [
        b"",
        ",".join(COLUMNS).encode() + b"\r\n00000.png,caf\xe9,1,1.6,,m,l\r\n",
        ",".join(COLUMNS).encode() + b"\r\n00000.png,a,1\r\n",
        ",".join(COLUMNS).encode() + b"\r\n00003.png,a,1,1.6,,m,l\r\n",
    ],
)
def test_a_damaged_table_is_not_written_over(save: Callable, output_folder: Path, table: bytes) -> None:
    folder = output_folder / "set" / "scale_1.6"
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_bytes(table)
    with pytest.raises(ValueError, match=r"^folder: .*metadata\.csv was not written by this version of RLG Save"):
        save([_pictures(1)], ["a"])
    assert _files(folder) == {"metadata.csv": table}


def test_pictures_with_an_alpha_channel_keep_it(save: Callable, output_folder: Path) -> None:
    picture = torch.rand(1, 8, 12, 4, generator=torch.Generator().manual_seed(0))
    save([picture], ["a"])
    saved = np.asarray(Image.open(output_folder / "set" / "scale_1.6" / "00000.png"))
    assert np.array_equal(saved, (picture[0] * 255).to(torch.uint8).numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ["half a character \ud800"]}, "prompt: it has more than 100000 characters, a NUL or half"),
        ({"model": ["a\0b"]}, "model: it has more than"),
        ({"folder": ["../out"]}, "folder: '../out' leads out"),
        ({"folder": ["/tmp"]}, "folder: '/tmp' leads out"),
        ({"folder": ["link"]}, "folder: 'link' leads out"),
        ({"folder": ["inner"]}, "folder: 'inner' leads out"),
        ({"folder": ["other"]}, "folder: "),
        ({"prompt": ["a", "b", "c"]}, "prompt: there are 3 of them for 2 images in 1 batches"),
        ({"labels": ["scale 1, seed 2"]}, "labels: there are 1 of them for 2 images"),
        ({"labels": ["branch 1, seed 2"] * 2}, "labels: 'branch 1, seed 2' is no label of RLG Sweep"),
    ],
)
def test_bad_inputs_are_one_sentence_and_leave_nothing(
    save: Callable, output_folder: Path, changes: dict[str, Any], message: str
) -> None:
    (output_folder / "link").symlink_to(output_folder.parent, target_is_directory=True)
    (output_folder / "inner").mkdir()
    (output_folder / "inner" / "scale_1.6").symlink_to(output_folder.parent, target_is_directory=True)
    (output_folder / "other" / "scale_1.6").mkdir(parents=True)
    (output_folder / "other" / "scale_1.6" / "metadata.csv").write_text("image_path,prompt\na.png,b\n")
    before = _files(output_folder.parent)
    with pytest.raises(ValueError) as caught:
        save([_pictures(2)], **{"prompt": ["a"], **changes})
    sentence = str(caught.value)
    assert sentence.startswith(message) and sentence.endswith(".") and "\n" not in sentence
    assert _files(output_folder.parent) == before


@given(scale=st.floats(-10, 10))
def test_folders_of_scales_are_the_references(scale: float) -> None:
    """It writes f"scale_{scale}" of a float."""
    assert folder_name(scale) == f"scale_{scale + 0.0}"
    assert COLUMNS[:2] == ("image_path", "prompt")


@pytest.mark.parametrize("times", [2, 99])
def test_a_file_that_another_program_holds_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """As scanners and indexers do on Windows: no reason to end a training of hours. What stays held is an error."""
    waited, replace, path = [], os.replace, tmp_path / "state"

    def held(*paths: Path) -> None:
        if len(waited) < times:
            raise PermissionError("held by another program")
        replace(*paths)

    monkeypatch.setattr("files.replacing.os.replace", held)
    monkeypatch.setattr("files.replacing.time.sleep", waited.append)
    path.write_text("old")
    if times == 2:
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert path.read_text() == "new"
    else:
        with pytest.raises(PermissionError), replacing(path) as temporary:
            temporary.write_text("new")
        assert path.read_text() == "old"
    assert sum(waited) < 3 and [file.name for file in tmp_path.iterdir()] == ["state"]
