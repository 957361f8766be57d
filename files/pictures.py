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

from .prompts import LONGEST
from .replacing import replacing

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

    def add(self, pictures: Iterable[np.ndarray], entries: Sequence[Entry], info: PngInfo | None = None) -> list[Path]:
        """Save the pictures that the set does not hold yet, and then the folders' metadata.

        A picture is held where a line with the same data has a file with the same pixels: a run that was stopped can
        be run again. A line is written after its file, so what a stopped run leaves behind is overwritten by the next.
        A line whose file is gone or damaged gets the next picture with its data.

        Args:
            pictures: (height, width, 3 or 4) uint8 each; the next is taken once the one before is written.
            entries: one for each picture.
            info: text to write into the new files.

        Returns:
            The new files.

        Raises:
            ValueError: a `metadata.csv` in the set is of another kind, or damaged, or a text cannot be written.
            OSError: the disk is full or cannot be written.
        """
        for entry in entries:
            _check(entry)
        tables = {entry.folder: _Table(self._root / entry.folder) for entry in entries}
        files: list[Path] = []
        for picture, entry in zip(pictures, entries, strict=True):
            digest = _digest(picture)
            if path := tables[entry.folder].place(entry, digest):
                write_bytes(path, png(picture, info))
                tables[entry.folder].append(entry, path, digest)
                files.append(path)
        for table in tables.values():
            table.write()
        return files


class _Table:
    """The `metadata.csv` of a folder.

    Raises:
        ValueError: it is of another kind, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / METADATA
        self._rows = self._read() if self._path.exists() else []
        self._written = len(self._rows)
        self._names: dict[tuple[str, ...], list[str]] = {}
        """Files by the rest of their line."""
        self._digests: dict[str, bytes | None] = {}
        """Of the files looked at so far: many pictures may have the same line, and each asks for all of its files."""
        for row in self._rows:
            self._names.setdefault(_data(row), []).append(row["image_path"])

    def place(self, entry: Entry, digest: bytes) -> Path | None:
        """The file that a picture belongs into; None where there is one with its data and its pixels."""
        gap = None
        for name in self._names.get(_data(entry.row("")), []):
            held = self._held(name)
            if held is None:
                gap = gap or name
            elif held == digest:
                return None
        return self._folder / (gap or image_name(len(self._rows)))

    def append(self, entry: Entry, path: Path, digest: bytes) -> None:
        """A line for a picture, where `place` did not give it that of another."""
        self._digests[path.name] = digest
        names = self._names.setdefault(_data(entry.row("")), [])
        if path.name not in names:
            names.append(path.name)
            self._rows.append(entry.row(path.name))

    def write(self) -> None:
        if len(self._rows) > self._written:
            write_csv(self._path, COLUMNS, self._rows)

    def _held(self, name: str) -> bytes | None:
        """What `_digest` says of a file that is there and whole."""
        if name not in self._digests:
            pixels = _pixels(self._folder / name)
            self._digests[name] = None if pixels is None else _digest(pixels)
        return self._digests[name]

    def _read(self) -> list[dict[str, str]]:
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                table = csv.DictReader(file)
                header, rows = tuple(table.fieldnames or ()), list(table)
        except (csv.Error, UnicodeDecodeError):
            header, rows = (), []
        whole = header == COLUMNS and all(None not in (*row, *row.values()) for row in rows)
        if not whole or [row["image_path"] for row in rows] != [image_name(n) for n in range(len(rows))]:
            raise ValueError(
                f"folder: {self._path} was not written by this version of RLG Save Set; choose another folder."
            )
        return rows


def _check(entry: Entry) -> None:
    """Raises ValueError: a table with it could not be written, or not be read again."""
    for name, text in (("prompt", entry.prompt), ("model", entry.model), ("lora", entry.lora)):
        if len(text) > LONGEST or "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                f"{name}: it has more than {LONGEST} characters, a NUL or half a character (\\ud800…); correct it."
            )


def _data(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in COLUMNS[1:])


def _digest(picture: np.ndarray) -> bytes:
    """The same for the same pixels alone."""
    return hashlib.blake2b(np.ascontiguousarray(picture), key=str(picture.shape).encode()).digest()


def _pixels(path: Path) -> np.ndarray | None:
    """Of a file that is there and whole."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError):  # Pillow has no class of its own for damaged files
        return None
