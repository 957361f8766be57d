"""Folders of pictures with captions: what is read, in which order, and what is said of a folder that is not one."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures with captions, in the host's input folder."""
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(folder / "b.png")
    Image.new("RGB", (16, 48), (0, 0, 255)).save(folder / "a.JPG", "JPEG", quality=100, subsampling=0)
    (folder / "b.txt").write_text("\ufeffa red\nrug \n", encoding="utf-8")
    (folder / "a.txt").write_text("a blue door", encoding="utf-8")
    (folder / "notes.md").write_text("no picture")
    return folder


def test_pictures_and_captions_are_in_the_order_of_names(pictures, run_node) -> None:
    images, prompts = run_node("RLGLoadImages", folder="pictures", width=32, height=16)
    assert prompts == ["a blue door", "a red rug"] and images.shape == (2, 16, 32, 3)
    assert torch.allclose(images[1], torch.tensor([1.0, 0.0, 0.0]).expand(16, 32, 3))
    assert torch.allclose(images[0], torch.tensor([0.0, 0.0, 1.0]).expand(16, 32, 3), atol=0.02)


def test_captions_are_not_offered_as_files_of_prompts(pictures, rlg) -> None:
    """They would be many, and each has one line."""
    (pictures / "list.txt").write_text("a cat\na dog\n", encoding="utf-8")
    (file,) = [one for one in rlg.nodes["RLGLoadPrompts"].define_schema().inputs if one.id == "file"]
    assert file.options == ["pictures/list.txt"]


def test_pictures_and_their_captions_cost_a_list_of_files_nothing_each(pictures, rlg) -> None:
    """The host asks for it several times a run, and the input folder may hold tens of thousands of them."""
    list_files = rlg.nodes["RLGLoadPrompts"].define_schema

    def calls() -> int:
        events: list[str] = []
        before = sys.getprofile()
        sys.setprofile(lambda frame, event, arg: events.append(event))
        try:
            list_files()
        finally:
            sys.setprofile(before)
        return events.count("call")

    (pictures / "without").mkdir()
    (pictures / "list.txt").write_text("a cat\n", encoding="utf-8")
    list_files()  # what is imported at the first time counts too
    of_few = calls()
    for number in range(100):
        for name in (f"{number}.png", f"{number}.txt", f"without/{number}.png"):
            (pictures / name).touch()
    assert calls() == of_few


def test_what_macos_writes_beside_files_is_none_of_ours(pictures, run_node, rlg) -> None:
    """On memory cards and network drives it notes what it knows of a file in another of nearly the same name."""
    (pictures / "list.txt").write_text("a cat\n", encoding="utf-8")
    for name in ("._b.png", "._b.txt", "._list.txt"):
        (pictures / name).write_bytes(b"\0\5\x16\7\xff")
    assert run_node("RLGLoadImages", folder="pictures", width=32, height=16)[1] == ["a blue door", "a red rug"]
    (file,) = [one for one in rlg.nodes["RLGLoadPrompts"].define_schema().inputs if one.id == "file"]
    assert file.options == ["pictures/list.txt"]


def test_an_accent_that_a_disk_keeps_apart_from_its_letter(pictures, run_node) -> None:
    """As macOS's older file systems do; people type the other form."""
    for name in ("a.JPG", "b.png"):
        (pictures / name).rename(pictures / unicodedata.normalize("NFD", f"caf\u00e9 {name}"))
    table = "image_path,prompt\ncaf\u00e9 a.JPG,door\ncaf\u00e9 b.png,rug\n"
    (pictures / "metadata.csv").write_text(table, encoding="utf-8")
    assert run_node("RLGLoadImages", folder="pictures", width=32, height=16)[1] == ["door", "rug"]


def test_the_middle_is_kept_and_a_turned_picture_is_upright(pictures, rlg) -> None:
    """A stripe in the middle of a photo that a camera saved on its side (EXIF orientation 6)."""
    pixels = np.zeros((60, 20, 3), np.uint8)
    pixels[20:40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(pictures / "b.png", exif=exif)
    found = rlg.module("files.captioned").captioned(pictures)[1].pixels(20, 20)
    assert found.shape == (20, 20, 3) and found.min() > 250


def test_a_folder_of_save_set_is_read_too(pictures, run_node, monkeypatch) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", folder_paths.get_input_directory)
    made = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    run_node(
        "RLGSaveSet", images=[made], prompt=["one, two", "three\nfour"], folder=["set"], seed=[1], scale=[1.6],
        model=[""], lora=[""],
    )  # fmt: skip
    images, prompts = run_node("RLGLoadImages", folder="set/scale_1.6", width=16, height=16)
    assert prompts == ["one, two", "three four"]
    assert torch.allclose(images, (made * 255).int() / 255)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_no_character_of_a_prompt_ends_a_line_of_the_table(pictures, run_node, monkeypatch, character) -> None:
    """Python's own lines end at all of these; those of a CSV file do not."""
    monkeypatch.setattr(folder_paths, "get_output_directory", folder_paths.get_input_directory)
    run_node(
        "RLGSaveSet", images=[torch.zeros(1, 16, 16, 3)], prompt=[f"a cat{character}on a mat"], folder=["set"],
        seed=[1], scale=[1.6], model=[""], lora=[""],
    )  # fmt: skip
    _, prompts = run_node("RLGLoadImages", folder="set/scale_1.6", width=16, height=16)
    assert prompts == ["a cat on a mat"]


def _no_text(folder: Path) -> None:
    (folder / "b.txt").unlink()


def _no_caption(folder: Path) -> None:
    (folder / "b.txt").write_text(" \n")


def _no_line(folder: Path) -> None:
    (folder / "metadata.csv").write_text("image_path,prompt\na.JPG,a door\n")


def _no_caption_in_line(folder: Path) -> None:
    (folder / "metadata.csv").write_text("image_path,prompt\na.JPG,a door\nb.png, \n")


def _no_columns(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file,text\na.JPG,a door\n")


def _stray_quote(folder: Path) -> None:
    """The rest of the file is then one value, longer than Python's CSV reader takes."""
    rest = "".join(f"{number}.png,a door\n" for number in range(10_000))
    (folder / "metadata.csv").write_text(f'image_path,prompt\na.JPG,"a door\n{rest}')


def _not_text(folder: Path) -> None:
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")


def _no_picture(folder: Path) -> None:
    for name in ("a.JPG", "b.png"):
        (folder / name).unlink()


def _damaged(folder: Path) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:50])


@pytest.mark.parametrize(
    ("spoil", "sentence", "known_before"),
    [
        (_no_text, r"1 of 2 pictures have no caption, such as b\.png: write b\.txt", True),
        (_no_caption, r"1 of 2 pictures have no caption, such as b\.png: write b\.txt", False),
        (_no_line, r"1 of 2 pictures have no caption, such as b\.png: metadata\.csv has no line", True),
        (_no_caption_in_line, r"1 of 2 pictures have no caption, such as b\.png: metadata\.csv has no line", True),
        (_no_columns, r".*metadata\.csv has no columns image_path and prompt", True),
        (_stray_quote, r".*metadata\.csv is no CSV \(field larger than", True),
        (_not_text, r"b\.txt cannot be read as UTF-8 text", False),
        (_no_picture, r"there is no picture in", True),
        (_damaged, r"b\.png cannot be read as a picture", False),
    ],
)
def test_a_wrong_folder_is_one_sentence(pictures, run_node, rlg, spoil, sentence, known_before) -> None:
    """Before anything runs, where no picture and no text has to be opened for it."""
    spoil(pictures)
    with pytest.raises(ValueError, match=rf"^folder: {sentence}.*\.$") as error:
        run_node("RLGLoadImages", folder="pictures", width=32, height=16)
    assert "\n" not in str(error.value)
    said = rlg.nodes["RLGLoadImages"].validate_inputs(folder="pictures")
    assert said == str(error.value) if known_before else said is True


def test_no_text_is_opened_before_anything_runs(pictures, run_node, rlg, monkeypatch) -> None:
    """There may be ten thousand, on a network drive, and the host asks at every run."""
    opened: list[str] = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: opened.append(path.name) or read_text(path, **how))
    assert rlg.nodes["RLGLoadImages"].validate_inputs(folder="pictures") is True and not opened
    run_node("RLGLoadImages", folder="pictures", width=32, height=16)
    assert opened == ["a.txt", "b.txt"]


@pytest.mark.parametrize(("picture", "text"), [("c.png", "C.TXT"), ("\xe9.png", "e\u0301.txt")])
def test_a_caption_that_another_disk_finds_is_not_missed_before_anything_runs(pictures, rlg, picture, text) -> None:
    """Disks of Windows and macOS have one file by names that are two on Linux: its own disk decides, once it runs."""
    Image.new("RGB", (8, 8)).save(pictures / picture)
    (pictures / text).write_text("a cat")
    assert rlg.nodes["RLGLoadImages"].validate_inputs(folder="pictures") is True


def test_more_than_there_is_room_for_is_one_sentence(pictures, run_node, monkeypatch) -> None:
    """Before the first one is read."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 20_000)
    with pytest.raises(
        ValueError, match=r"^folder: 2 pictures of 64 × 32 take .* use at most 0, or make them smaller\.$"
    ):
        run_node("RLGLoadImages", folder="pictures", width=64, height=32)


@pytest.mark.parametrize("name", ["nowhere", "..", "/etc", "x\0", "pictures/b.png"])
def test_a_folder_that_is_not_there_is_said_before_anything_runs(pictures, rlg, name) -> None:
    said = rlg.nodes["RLGLoadImages"].validate_inputs(folder=name)
    assert said.startswith("folder: there is no ") and "\n" not in said
    assert rlg.nodes["RLGLoadImages"].validate_inputs(folder=None) is True


def test_links_out_of_the_folder_are_not_followed(pictures: Path, rlg: SimpleNamespace, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (pictures / "c.png").symlink_to(tmp_path / "secret.png")
    read: Callable = rlg.module("files.captioned").captioned
    assert [one.path.name for one in read(pictures)] == ["a.JPG", "b.png"]


def test_another_picture_is_seen(pictures: Path, rlg: SimpleNamespace) -> None:
    node = rlg.nodes["RLGLoadImages"]
    before = node.fingerprint_inputs(folder="pictures")
    assert node.fingerprint_inputs(folder="pictures") == before
    (pictures / "b.txt").write_text("a red carpet")
    assert node.fingerprint_inputs(folder="pictures") != before


def test_a_folder_that_comes_through_a_link_is_no_reason_to_run_again(rlg: SimpleNamespace) -> None:
    """The host asks with None for it, and takes an error for a change at every run."""
    assert rlg.nodes["RLGLoadImages"].fingerprint_inputs(folder=None, width=32, height=16) is None
