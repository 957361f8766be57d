"""Numbers as users write them for an axis of a sweep: one by one, or as ranges."""

from __future__ import annotations

from decimal import Decimal

from ..messages import shown

_MOST = 1000
"""Values of one axis; with more a range has a slip in it."""


def number_list(text: str, name: str, example: str) -> list[float]:
    """Numbers separated by commas; `0:3:0.5` is 0 to 3 in steps of 0.5, `0..3/7` is seven values from 0 to 3.

    Both ends belong to a range. Decimals stay decimals: 0:1:0.1 has 0.3 in it, and not 0.30000000000000004.

    Args:
        text: may be empty.
        name: of the input, for messages.
        example: what to write, for messages.

    Raises:
        ValueError: a part is no number and no range, or there are more than 1000 numbers.
    """
    numbers: list[float] = []
    for part in (part.strip() for part in text.replace("\n", ",").split(",")):
        if part:
            numbers += _values(part, name, example)
        if len(numbers) > _MOST:
            raise ValueError(f"{name}: '{shown(part)}' makes more than {_MOST} values; use a larger step.")
    return numbers


def _values(part: str, name: str, example: str) -> list[float]:
    try:
        if ".." in part:
            return _evenly(part)
        if ":" in part:
            return _in_steps(part)
        return [float(part)]
    except (ValueError, ArithmeticError):  # the second from decimals with exponents of many digits
        raise ValueError(
            f"{name}: '{shown(part)}' is not a number; write numbers such as {example}, or a range such as 0:3:0.5 "
            "(start:end:step) or 0..3/7 (start..end/count)."
        ) from None


def _evenly(part: str) -> list[float]:
    start, _, rest = part.partition("..")
    end, _, count = rest.partition("/")
    first, last, n = _decimal(start), _decimal(end), int(count)
    if n < 2:
        raise ValueError
    return [float(round(first + (last - first) * i / (n - 1), 6)) for i in range(min(n, _MOST + 1))]


def _in_steps(part: str) -> list[float]:
    first, last, step = map(_decimal, part.split(":"))
    if step == 0 or (last - first) / step < 0:
        raise ValueError
    n = int(min((last - first) / step, Decimal(_MOST))) + 1
    return [float(first + step * i) for i in range(n)]


def _decimal(text: str) -> Decimal:
    number = Decimal(text.strip())
    if not number.is_finite():
        raise ValueError
    return number
