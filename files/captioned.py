"""A folder of pictures with captions: as trainers of LoRAs keep one, or as RLG Save Set writes one.

cat.png, cat.txt                          a text beside each picture
00000.png, 00001.png, …, metadata.csv     or one table for all, see pictures.py
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .names import is_of_the_system
from .pictures import METADATA

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Captioned:
    """A picture file and what it shows, as one line."""

    path: Path
    caption: str

    def pixels(self, width: int, height: int) -> np.ndarray:
        """The middle of the picture at a size of that shape, (height, width, 3) uint8.

        Raises:
            ValueError: the file is damaged or no picture.
        """
        try:
            with Image.open(self.path) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))
        # Pillow has no class of its own for damaged files.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"folder: {self.path.name} cannot be read as a picture ({error}); replace it or take it out."
            ) from None


def captions_among(names: Collection[str]) -> set[str]:
    """Of the names in a folder, those of texts that have a picture beside them."""
    # Not as paths: there may be tens of thousands.
    pictures = {name.rpartition(".")[0] for name in names if name.lower().endswith(PICTURES)}
    return {name for name in names if name.lower().endswith(".txt") and name.rpartition(".")[0] in pictures}


def captioned(folder: Path) -> list[Captioned]:
    """The pictures of a folder, in the order of their names.

    Raises:
        ValueError: there is none, or one without a caption; the message is one sentence.
    """
    files, table = _pictures(folder), _table(folder)
    captions = [_beside(path) if table is None else table.get(_composed(path.name), "") for path in files]
    found = [Captioned(path, " ".join(caption.split())) for path, caption in zip(files, captions, strict=True)]
    _refuse([one.path for one in found if not one.caption], files, table)
    return found


def check_captioned(folder: Path) -> None:
    """Refuse what `captioned` refuses, as far as names and a table tell it.

    No text is opened: the host asks at every run, and ten thousand take tens of seconds on a network drive.

    Raises:
        ValueError: there is no picture, or one that has certainly no caption.
    """
    files, table = _pictures(folder), _table(folder)
    if table is None:
        names = {_on_any_disk(name) for name in os.listdir(folder)}
        without = [path for path in files if _on_any_disk(_text_of(path)) not in names]
    else:
        without = [path for path in files if not table.get(_composed(path.name), "").split()]
    _refuse(without, files, table)


def _pictures(folder: Path) -> list[Path]:
    root = folder.resolve()
    with os.scandir(folder) as entries:
        # Links are followed to their file, but not out of the folder. What is no link need not be looked up one by one.
        files = sorted(
            folder / entry.name
            for entry in entries
            if Path(entry.name).suffix.lower() in PICTURES
            and not is_of_the_system(entry.name)
            and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root))
        )
    if not files:
        raise ValueError(f"folder: there is no picture in {folder}; put some there ({', '.join(PICTURES)}).")
    return files


def _refuse(without: Sequence[Path], files: Sequence[Path], table: dict[str, str] | None) -> None:
    """Raises ValueError where there are pictures without a caption."""
    if without:
        beside = "metadata.csv has no line for it" if table is not None else f"write {_text_of(without[0])}"
        raise ValueError(
            f"folder: {len(without)} of {len(files)} pictures have no caption, such as {without[0].name}: {beside}."
        )


def _text_of(picture: Path) -> str:
    return f"{picture.stem}.txt"


def _beside(picture: Path) -> str:
    text = picture.with_name(_text_of(picture))
    return _read(text) if text.is_file() else ""


def _table(folder: Path) -> dict[str, str] | None:
    """Captions by the names of their pictures; None where there is no table."""
    path = folder / METADATA
    if not path.exists():
        return None
    # Only \n, \r\n and \r end a line here: str.splitlines would also split at U+2028 and others within a caption.
    rows = csv.DictReader(io.StringIO(_read(path), newline=""))
    try:
        if not {"image_path", "prompt"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"folder: {path} has no columns image_path and prompt; correct it, or delete it for .txt files."
            )
        return {_composed(row["image_path"] or ""): row["prompt"] or "" for row in rows}
    except csv.Error as error:
        raise ValueError(f"folder: {path} is no CSV ({error}); correct it, or delete it for .txt files.") from None


def _composed(name: str) -> str:
    """Disks of macOS may keep an accent apart from its letter."""
    return unicodedata.normalize("NFC", name)


def _on_any_disk(name: str) -> str:
    """The same for names that some disk takes for the same, as those of macOS and Windows take B.TXT for b.txt."""
    return _composed(name).casefold()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"folder: {path.name} cannot be read as UTF-8 text ({error}); save it as UTF-8.") from None
