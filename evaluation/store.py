"""The output folder of an evaluation. Every file in it is whole, and all of it can be made again from the plan.

    manifest.json                  what this folder holds; made first
    shards/<pair>/000012.csv       scores of the batch that begins with prompt 12; made last, after its pictures
    <pair>/scale_1.0/00000.png     pictures: prompt by prompt, each with all seeds
    <pair>/scale_1.0/metadata.csv, evaluation_results.csv        made at the end, from the shards

So a batch is done where its shard and its pictures are there, and a stop at any moment costs the batches in work.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from evaluation.errors import EvaluationError
from evaluation.plan import Batch, Plan
from evaluation.worker import Picture, difference
from files.names import is_of_the_system
from files.pictures import COLUMNS, METADATA, Entry, image_name, write_bytes, write_csv
from files.replacing import replacing

MANIFEST = "manifest.json"
RESULTS = "evaluation_results.csv"
FORMAT = 1
_LOCK = ".lock"
_HALF_WRITTEN = re.compile(r".+\.\d+\.tmp")
"""What `replacing` leaves where its process is killed."""


class Store:
    """The output folder, for one process at a time.

    Args:
        plan: with its output folder.
        prompts: all of them.

    Raises:
        EvaluationError: the folder is in use, holds something else, or cannot be written.
    """

    def __init__(self, plan: Plan, prompts: Sequence[str]) -> None:
        self._plan, self._prompts, self._root = plan, prompts, plan.output
        self._columns = (*(f"{reward.name}_score" for reward in plan.rewards), "diversity")
        try:
            self._check()
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._root / _LOCK)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise EvaluationError(f"output: another evaluation writes to {self._root}; wait for its end.") from None
        except (OSError, NotImplementedError) as error:  # the second where a file system knows no locks
            reason = getattr(error, "strerror", None) or error
            raise EvaluationError(f"output: {self._root} cannot be written ({reason}); name another.") from None

    def close(self) -> None:
        """Let others write; a folder that was not begun is taken away again."""
        begun = (self._root / MANIFEST).exists()
        self._lock.release()
        if not begun:
            (self._root / _LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._root.rmdir()

    def begin(self, description: dict[str, Any]) -> None:
        """Write the manifest, or compare with the one of the run that goes on here.

        Raises:
            EvaluationError: model files or versions are not those of that run.
        """
        path = self._root / MANIFEST
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))["made_with"]
            if unlike := difference(before, description):
                raise EvaluationError(
                    f"output: {self._root} was begun with something else ({unlike}); go back to that, or choose "
                    "another output."
                )
            return
        manifest = {**self._identity(), "made_with": description}
        write_bytes(path, json.dumps(manifest, indent=1, ensure_ascii=False).encode())

    def missing(self) -> list[Batch]:
        """Batches without a shard or with pictures that are gone; half-written files of a killed run are removed."""
        _names(self._root)
        missing: list[Batch] = []
        for pair, settings in enumerate(self._plan.pairs):
            done = _names(self._root / "shards" / settings.name)
            folders = [_names(self._root / settings.name / cell.folder) for cell in self._plan.cells]
            complete = set.intersection(*folders)
            missing += [
                batch
                for batch in self._plan.batches(pair, self._prompts)
                if self._shard(batch).name not in done or not complete.issuperset(self._image_names(batch))
            ]
        return missing

    def write(self, batch: Batch, pictures: Sequence[Picture]) -> None:
        """Raises OSError: the disk is full or cannot be written; the batch is missing then."""
        pair = self._plan.pairs[batch.pair]
        rows = []
        for picture in pictures:
            cell = self._plan.cells[picture.cell]
            name = image_name(picture.prompt * len(self._plan.seeds) + picture.seed)
            write_bytes(self._root / pair.name / cell.folder / name, picture.png)
            scores = [*picture.scores, picture.diversity]
            rows.append(
                {
                    "folder": cell.folder,
                    **self._entry(batch.pair, picture).row(name),
                    **dict(zip(self._columns, map(_text, scores), strict=True)),
                }
            )
        write_csv(self._shard(batch), ("folder", *COLUMNS, *self._columns), rows)

    def collect(self, pair: int) -> np.ndarray:
        """Write the tables of a pair from its shards.

        Returns:
            (cells, prompts, seeds, rewards + 1) float64; the last column is the diversity, NaN where there is none.
        """
        plan, root = self._plan, self._root / self._plan.pairs[pair].name
        values = np.full((len(plan.cells), len(self._prompts), len(plan.seeds), len(self._columns)), np.nan)
        cells = {cell.folder: number for number, cell in enumerate(plan.cells)}
        with ExitStack() as stack:
            metadata, results = (
                {
                    folder: _table(stack, root / folder / name, kept)
                    for folder in cells
                }
                for name, kept in ((METADATA, COLUMNS), (RESULTS, ("image_path", "prompt", "seed", *self._columns)))
            )  # fmt: skip
            for batch in plan.batches(pair, self._prompts):
                for row in self._rows(batch):
                    folder = row["folder"]
                    metadata[folder].writerow(row)
                    results[folder].writerow(row)
                    image = int(row["image_path"].split(".")[0])
                    scores = [float(row[name]) if row[name] else np.nan for name in self._columns]
                    values[cells[folder], image // len(plan.seeds), image % len(plan.seeds)] = scores
        return values

    def _check(self) -> None:
        path = self._root / MANIFEST
        if not path.exists():
            others = (entry.name for entry in self._root.iterdir()) if self._root.exists() else ()
            if any(
                name != _LOCK and not _HALF_WRITTEN.fullmatch(name) and not is_of_the_system(name) for name in others
            ):
                raise EvaluationError(f"output: {self._root} holds other files; choose an empty or a new folder.")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            there = {name: found[name] for name in ("made_with", *self._identity())}
        except (ValueError, KeyError, TypeError):
            raise EvaluationError(f"output: {path} is damaged; choose another folder, or delete this one.") from None
        del there["made_with"]
        if unlike := difference(there, self._identity()):
            raise EvaluationError(
                f"output: {self._root} holds the results of another plan ({unlike}); choose another output, or go "
                "back to that plan."
            )

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(list(self._prompts)).encode()).hexdigest()
        settings = json.loads(self._plan.model_dump_json(exclude={"output": True, "prompts": True}))
        return {"format": FORMAT, "prompts": len(self._prompts), "prompts_sha256": digest, "plan": settings}

    def _entry(self, pair: int, picture: Picture) -> Entry:
        settings, cell = self._plan.pairs[pair], self._plan.cells[picture.cell]
        return Entry(
            prompt=self._prompts[picture.prompt],
            seed=self._plan.seeds[picture.seed],
            scale=cell.scale,
            schedule=cell.schedule_text,
            model=settings.base,
            lora=settings.tuned,
        )

    def _rows(self, batch: Batch) -> Iterator[dict[str, str]]:
        """Raises EvaluationError: a shard is not as it was written."""
        path, columns = self._shard(batch), ("folder", *COLUMNS, *self._columns)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError):
            rows = []
        expected = len(batch.prompts) * len(self._plan.seeds) * len(self._plan.cells)
        if len(rows) != expected or any(tuple(row) != columns or None in row.values() for row in rows):
            raise EvaluationError(f"output: {path} is damaged; delete it and run this again.")
        yield from rows

    def _shard(self, batch: Batch) -> Path:
        return self._root / "shards" / self._plan.pairs[batch.pair].name / f"{batch.first:06d}.csv"

    def _image_names(self, batch: Batch) -> Iterator[str]:
        seeds = len(self._plan.seeds)
        first = batch.first * seeds
        return (image_name(number) for number in range(first, first + len(batch.prompts) * seeds))


def _names(folder: Path) -> set[str]:
    """Names of the files in a folder, after what a killed process left half-written there is removed."""
    if not folder.is_dir():
        return set()
    names = {path.name for path in folder.iterdir()}
    for name in filter(_HALF_WRITTEN.fullmatch, names):
        (folder / name).unlink()
    return names


def _table(stack: ExitStack, path: Path, columns: Sequence[str]) -> csv.DictWriter:
    temporary = stack.enter_context(replacing(path))
    file = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
    table = csv.DictWriter(file, columns, extrasaction="ignore")
    table.writeheader()
    return table


def _text(value: float | None) -> str:
    """Nine digits are a float32, exactly."""
    return "" if value is None else f"{value:.9g}"
