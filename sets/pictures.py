"""A set of pictures on disk, in the layout of the RLG reference: a folder for each scale, a `metadata.csv` in each.

    scale_0.0/00000.png, 00001.png, …, metadata.csv
    scale_1.6/…

The reference (jinluo12345/Reinforcement-learning-guidance, scripts/generate.py) writes `image_path` and `prompt`; its
scripts find the pictures beside their `metadata.csv`, so paths are names here and a set can be moved. The other columns
say how a picture was made.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .files import replacing

METADATA = "metadata.csv"
_COMPRESSION = 4  # as the host saves
_LONGEST_NAME = 80  # of a schedule; file systems allow 255 bytes


@dataclass(frozen=True)
class Entry:
    """How one picture was made: a line of `metadata.csv` without the file's name.

    Attributes:
        scale: a constant scale, None with a schedule.
        schedule: as text, "" with a constant scale.
    """

    prompt: str
    seed: int
    scale: float | None
    schedule: str
    model: str
    lora: str

    @property
    def folder(self) -> str:
        return folder_name(self.scale, self.schedule)

    def row(self, image_path: str) -> dict[str, str]:
        values = {name: "" if value is None else str(value) for name, value in asdict(self).items()}
        return {"image_path": image_path, **values}


COLUMNS = ("image_path", *(field.name for field in fields(Entry)))


def folder_name(scale: float | None, schedule: str = "") -> str:
    """The folder of a scale (as the reference writes it: scale_1.0), or of a schedule by its text."""
    if scale is not None:
        return f"scale_{scale + 0.0}"
    text = schedule.replace(", ", "_").replace(":", "-").replace(" ", "_").replace("(", "").replace(")", "")
    if len(text) > _LONGEST_NAME:
        text = f"{text[:_LONGEST_NAME]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"scale_{text}"


def image_name(number: int) -> str:
    return f"{number:05d}.png"


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """8-bit values of a picture from 0 to 1, as the host's SaveImage makes them."""
    return np.clip(255.0 * picture, 0, 255).astype(np.uint8)


def png(picture: np.ndarray, info: PngInfo | None = None) -> bytes:
    """The file of a picture, (height, width, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", pnginfo=info, compress_level=_COMPRESSION)
    return file.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a table as a whole or not at all, as the reference does: with \\r\\n, so that a lone \\r is quoted too."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


class PictureSet:
    """The folders of a set under `root`; what is in them stays, and new pictures go behind."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, pictures: Sequence[np.ndarray], entries: Sequence[Entry], info: PngInfo | None = None) -> list[Path]:
        """Save the pictures that the set does not hold yet, and then the folders' metadata.

        A picture is held where a line with the same data has a file with the same pixels: a run that was stopped can
        be run again. A line is written after its file, so what a stopped run leaves behind is overwritten by the next.

        Args:
            pictures: (height, width, 3) uint8 each.
            entries: one for each picture.
            info: text to write into the new files.

        Returns:
            The new files.

        Raises:
            ValueError: a `metadata.csv` in the set is of another kind, or damaged.
            OSError: the disk is full or cannot be written.
        """
        tables = {entry.folder: self._rows(self._root / entry.folder) for entry in entries}
        files: list[Path] = []
        for picture, entry in zip(pictures, entries, strict=True):
            folder, rows = self._root / entry.folder, tables[entry.folder]
            if not _holds(folder, rows, entry, picture):
                path = folder / image_name(len(rows))
                write_bytes(path, png(picture, info))
                rows.append(entry.row(path.name))
                files.append(path)
        for folder in dict.fromkeys(path.parent for path in files):
            write_csv(folder / METADATA, COLUMNS, tables[folder.name])
        return files

    @staticmethod
    def _rows(folder: Path) -> list[dict[str, str]]:
        path = folder / METADATA
        if not path.exists():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if any(tuple(row) != COLUMNS or row["image_path"] != image_name(n) for n, row in enumerate(rows)):
            raise ValueError(f"folder: {path} was not written by this version of RLG Save Set; choose another folder.")
        return rows


def _holds(folder: Path, rows: Sequence[Mapping[str, str]], entry: Entry, picture: np.ndarray) -> bool:
    wanted = entry.row("")
    for row in rows:
        path = folder / row["image_path"]
        if {**row, "image_path": ""} == wanted and path.is_file():
            with Image.open(path) as held:
                if np.array_equal(np.asarray(held), picture):
                    return True
    return False
