"""Fonts for names in Chinese, Japanese and Korean, which the ones of Pillow and matplotlib do not have."""

from __future__ import annotations

import contextlib
import functools
import re

# Of Linux, Windows and macOS, and those that many people add; matplotlib knows where they are.
_FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "PingFang HK", "Hiragino Sans GB", "SimHei", "SimSun",
    "Noto Sans TC", "Microsoft JhengHei", "Noto Sans JP", "Yu Gothic", "Meiryo", "MS Gothic", "Hiragino Sans",
    "IPAexGothic", "Noto Sans KR", "Malgun Gothic", "Apple SD Gothic Neo", "NanumGothic", "Arial Unicode MS",
)  # fmt: skip
_LETTER = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")


def is_far_eastern(text: str) -> bool:
    """Whether any of it is Chinese, Japanese or Korean; such letters are about twice as wide as others."""
    return _LETTER.search(text) is not None


def families() -> list[str]:
    """Those that are installed here."""
    return list(_files())


def file_for(text: str) -> str | None:
    """The first font here that has all of a text's Chinese, Japanese and Korean letters, or else the first one.

    None where there are no such letters, or no such font.
    """
    letters = {ord(letter) for letter in _LETTER.findall(text)}
    if not letters:
        return None
    files = list(_files().values())
    return next((file for file in files if letters <= _letters_of(file)), files[0] if files else None)


@functools.cache
def _files() -> dict[str, str]:
    try:
        from matplotlib import font_manager
    except ImportError:  # only plots ask for it
        return {}
    known = {font.name for font in font_manager.fontManager.ttflist}
    found = {}
    for family in _FAMILIES:
        if family in known:
            with contextlib.suppress(ValueError):  # it has gone since matplotlib looked
                found[family] = font_manager.findfont(family, fallback_to_default=False)
    return found


@functools.cache
def _letters_of(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())
