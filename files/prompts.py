"""Prompts from a file: one a line, or a column of a CSV or JSON Lines file."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

SUFFIXES = (".txt", ".csv", ".jsonl")
LONGEST = 100_000
"""Characters of a prompt: a table with longer ones could not be read again by most readers of CSV."""


def read_prompts(
    file: Path, column: str = "prompt", start: int = 0, count: int = 0, shuffle_seed: int = 0
) -> list[str]:
    """A part of a file's prompts, without white space at their ends; empty ones are none.

    Args:
        file: UTF-8; `.txt` has one prompt a line, `.csv` a header and `.jsonl` an object (or a string) a line.
        column: of a CSV or JSON Lines file, where the prompts stand.
        start: the first one to take, counted from 0, after the shuffle.
        count: how many to take at most; 0 takes all.
        shuffle_seed: 0 keeps the file's order, any other number gives another order, always the same one.

    Raises:
        ValueError: the file is not that, or nothing is left to take; the message is one sentence.
    """
    prompts = list(_read(file, column))
    if not prompts:
        raise ValueError(f"file: {file.name} holds no prompt; write at least one.")
    if shuffle_seed:
        random.Random(shuffle_seed).shuffle(prompts)
    part = prompts[start : start + count if count else None]
    if not part:
        raise ValueError(f"start: {file.name} has {len(prompts)} prompts and {start} is behind the last; lower start.")
    return part


def _read(file: Path, column: str) -> Iterator[str]:
    readers = {".txt": _lines, ".csv": _csv_column, ".jsonl": _json_column}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ValueError(f"file: {file.name} is of no kind that is read here; give {', '.join(SUFFIXES)}.")
    try:
        # Only \n, \r\n and \r end a line here: str.splitlines would also split at U+2028 and others within a prompt.
        with file.open(encoding="utf-8-sig", newline="" if reader is _csv_column else None) as text:
            for prompt in reader(text, file.name, column):
                if "\0" in prompt:
                    raise ValueError(f"file: {file.name} holds a NUL character in a prompt; take it out.")
                if stripped := prompt.strip():
                    if len(stripped) > LONGEST:
                        raise ValueError(
                            f"file: {file.name} holds a prompt of {len(stripped)} characters; put each on a line of "
                            f"its own, of {LONGEST} at most."
                        )
                    yield stripped
    except UnicodeDecodeError as error:
        raise ValueError(
            f"file: {file.name} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from None
    except OSError as error:
        raise ValueError(f"file: {file} cannot be read ({error.strerror}); check its name and its rights.") from None


def _lines(text: TextIO, name: str, column: str) -> Iterator[str]:
    yield from text


def _csv_column(text: TextIO, name: str, column: str) -> Iterator[str]:
    rows = csv.DictReader(text, strict=True)
    try:
        header = rows.fieldnames or []
        if header.count(column) != 1:
            found = "twice" if column in header else "not"
            raise ValueError(f"column: '{column}' is {found} in the header of {name} ({_named(header)}); name another.")
        for row in rows:
            if row[column] is None:
                raise ValueError(f"file: line {rows.line_num} of {name} ends before '{column}'; complete it.")
            yield row[column]
    except csv.Error as error:
        raise ValueError(f"file: line {rows.line_num} of {name} is no CSV ({error}); correct it.") from None


def _json_column(text: TextIO, name: str, column: str) -> Iterator[str]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"file: line {number} of {name} is no JSON ({error}); correct it.") from None
        if isinstance(value, dict):
            if column not in value:
                raise ValueError(f"column: line {number} of {name} has no '{column}' ({_named(value)}); name another.")
            value = value[column]
        if not isinstance(value, str):
            raise ValueError(f"file: line {number} of {name} holds no text for a prompt; write it in quotes.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"file: line {number} of {name} holds half a character (\\ud800…); correct it.") from None
        yield value


def _named(columns: Iterable[object]) -> str:
    names = [repr(str(column)[:40])[1:-1] for column in columns]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"it has {', '.join(names[:20])}{more}" if names else "it is empty"
