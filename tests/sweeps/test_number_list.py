"""Lists of numbers as users write them: the decimals they mean, both ends included."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from without_host import number_list


def _read(text: str) -> list[float]:
    return number_list.number_list(text, "scales", "0, 1, 2")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", []),
        ("0, 0.5,\n1.6", [0, 0.5, 1.6]),
        ("0:3:0.5", [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        ("0:1:0.3", [0, 0.3, 0.6, 0.9]),
        ("2:-1:-1.5", [2, 0.5, -1]),
        ("0..3/7", [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        ("1..0/3", [1, 0.5, 0]),
        ("-1 .. 1 / 3, 2, 3 : 4 : 1", [-1, 0, 1, 2, 3, 4]),
        ("1:1:1", [1]),
    ],
)
def test_numbers_and_ranges(text: str, numbers: list[float]) -> None:
    assert _read(text) == numbers


hundredths = st.integers(-1000, 1000)


@given(start=hundredths, count=st.integers(0, 200), step=hundredths.filter(bool))
def test_a_range_is_exact_in_decimals(start: int, count: int, step: int) -> None:
    """Of whole hundredths: each value is the float that its digits mean, and the end is one of them."""
    wanted = [float(Fraction(start + step * i, 100)) for i in range(count + 1)]
    assert _read(f"{start / 100}:{(start + step * count) / 100}:{step / 100}") == wanted


@given(start=hundredths, end=hundredths, count=st.integers(2, 200))
def test_an_even_range_has_its_ends_and_its_count(start: int, end: int, count: int) -> None:
    found = _read(f"{start / 100}..{end / 100}/{count}")
    assert len(found) == count and (found[0], found[-1]) == (start / 100, end / 100)
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 3e-6
