"""Names of files and folders, as every system can have them."""

from __future__ import annotations

_FORBIDDEN = frozenset('/\\:*?"<>|')
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
"""What Windows opens instead of a file, whatever follows a dot."""
_WRITTEN_BY_SYSTEMS = frozenset({".ds_store", "desktop.ini", "thumbs.db"})


def can_be_a_folder(name: str) -> bool:
    """Whether a folder may have this name on Linux, macOS and Windows; its length is not looked at."""
    plain = bool(name) and name.isprintable() and _FORBIDDEN.isdisjoint(name)
    # Windows leaves out dots and spaces at the end of a path, but not within it.
    return plain and name.strip(". ") == name and name.partition(".")[0].strip().lower() not in _DEVICES


def is_of_the_system(name: str) -> bool:
    """Whether a file is what macOS or Windows notes about a folder, or about a file (`._picture.png`)."""
    return name.startswith("._") or name.lower() in _WRITTEN_BY_SYSTEMS
