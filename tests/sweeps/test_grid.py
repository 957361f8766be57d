"""The labelled picture: every picture at its place, every part of a label said once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pictures import sweep_labels
from without_host import grid, pixels


def _pictures(count: int, height: int = 40, width: int = 56) -> list[Image.Image]:
    """Each of one strong colour that nothing else in the grid has."""
    return [Image.new("RGB", (width, height), (255, 255 * (n + 1) // (count + 1), 0)) for n in range(count)]


def _grid(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int = 0, title: str = "") -> torch.Tensor:
    return pixels.to_image(np.array(grid.labelled_grid(pictures, labels, columns, title)))[None]


def _boxes(image: torch.Tensor, pictures: list[Image.Image]) -> list[tuple[int, int, int, int]]:
    """Where each picture is in the grid: top, left, height, width."""
    boxes = []
    for picture in pictures:
        colour = torch.tensor(picture.getpixel((0, 0))) / 255
        found = ((image[0] - colour).abs().amax(-1) < 0.5 / 255).nonzero()
        (top, left), (bottom, right) = found.amin(0).tolist(), found.amax(0).tolist()
        assert len(found) == (bottom - top + 1) * (right - left + 1)  # unbroken: no text on it
        boxes.append((top, left, bottom - top + 1, right - left + 1))
    return boxes


@given(st.integers(2, 5), st.integers(2, 5))
def test_scales_are_columns_and_switches_rows(switches: int, scales: int) -> None:
    found = grid.layout(sweep_labels(switches, scales))
    assert found.columns == scales
    assert found.column_headers == [f"scale {s}" for s in range(scales)]
    assert found.row_headers == [f"switch {w / 10}" for w in range(switches)]
    assert found.common == "seed 7" and not any(found.captions)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 12))
def test_no_part_of_a_label_is_lost(switches: int, scales: int, columns: int) -> None:
    labels = sweep_labels(switches, scales)
    found = grid.layout(labels, columns)
    if columns:
        assert found.columns == min(columns, len(labels))
    for i, label in enumerate(labels):
        row, column = divmod(i, found.columns)
        said = [found.common, found.column_headers[column], found.row_headers[row], found.captions[i]]
        assert sorted(", ".join(filter(None, said)).split(", ")) == sorted(label.split(", "))


def test_scales_alone_stand_in_a_row() -> None:
    found = grid.layout([f"scale {s}, seed 3" for s in range(6)])
    assert (found.columns, found.rows) == (6, 1)


def test_labels_of_unlike_parts_are_captions() -> None:
    labels = ["a", "b, c", "d, e, f", "g"]
    found = grid.layout(labels, 2)
    assert found.captions == labels


@pytest.mark.parametrize("size", [(8, 8), (40, 56), (300, 200)])
@pytest.mark.parametrize("columns", [0, 1, 2, 5])
def test_pictures_are_whole_and_in_order(size, columns) -> None:
    pictures, labels = _pictures(6, *size), sweep_labels(2, 3)
    image = _grid(pictures, labels, columns, "a title")
    boxes = _boxes(image, pictures)
    assert {box[2:] for box in boxes} == {size}
    assert sorted(boxes, key=lambda box: box[:2]) == boxes  # row by row
    wanted = grid.layout(labels, columns).columns
    assert len({box[1] for box in boxes}) == min(wanted, 6)


def test_text_is_readable_and_kept_apart_at_any_size() -> None:
    """Headers of neighbouring columns never touch: between them runs a column of background pixels."""
    for size in (8, 64, 512):
        pictures, labels = _pictures(4, size, size), [f"scale {s}.25" for s in range(4)]
        image = _grid(pictures, labels, 4, "")
        boxes = _boxes(image, pictures)
        header = image[0, : boxes[0][0]]
        ink = (header < 0.9).any(-1)
        assert ink.any(1).sum() >= 7  # pixels of text height
        middles = [(a[1] + a[3] + b[1]) // 2 for a, b in zip(boxes, boxes[1:], strict=False)]
        assert not any(ink[:, middle].any() for middle in middles)
        for box in boxes:
            assert ink[:, max(box[1] + box[3] // 2 - 30, 0) : box[1] + box[3] // 2 + 30].any()


def test_title_is_whole_over_a_small_picture() -> None:
    pictures = _pictures(1, 16, 16)
    short, long = (_grid(pictures, ["scale 1"], 0, "m" * n) for n in (1, 60))
    assert long.shape[2] > short.shape[2] + 59 * 5


def test_a_large_grid_is_shrunk() -> None:
    picture = Image.new("RGB", (512, 512))
    image = grid.labelled_grid([picture] * 500, [f"scale {n}" for n in range(500)], 0, "")
    assert 6000 < max(image.size) <= 8192


def test_long_headers_of_rows_are_broken_into_lines() -> None:
    """As the demo's prompts are; they are not drawn over the pictures."""
    pictures = _pictures(2, 128, 128)
    plan = grid.Layout(1, "", [""], ["a red star to the left of a blue circle on a striped background"] * 2, [""] * 2)
    image = pixels.to_image(np.array(grid.grid(pictures, plan)))[None]
    assert {box[2:] for box in _boxes(image, pictures)} == {(128, 128)}
    assert image.shape[2] < 128 + 2 * 128


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("lora rlg_demo_compressibility", ["lora", "rlg_demo_compressibility"]),
        ("a red star to the left of a blue circle", ["a red star to the", "left of a blue", "circle"]),
        ("x" * 50, ["x" * 40, "x" * 10]),
    ],
    ids=["a name", "a prompt", "no word"],
)
def test_names_are_left_whole_in_headers_of_rows(header: str, lines: list[str]) -> None:
    assert grid.folded(header).split("\n") == lines


def test_unlike_counts_or_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^labels: there are 2 of them for 3 images; connect .*\.$"):
        grid.labelled_grid(_pictures(3), ["a", "b"], 0, "")
    with pytest.raises(ValueError, match=r"^images: they have different sizes; .*\.$"):
        grid.labelled_grid([*_pictures(1), *_pictures(1, 41)], ["a", "b"], 0, "")
