"""PEFT's patterns for module names, matched in a time that grows with the length of name and pattern alone.

`rank_pattern` and `alpha_pattern` of a downloaded adapter are regular expressions from a stranger. Python's `re`
tries every way to match, and a short pattern such as `(a+)+b` keeps it busy for hours. The engine that pydantic
brings builds an automaton instead, of a limited size; what such an automaton cannot express (looking around, going
back to a group) it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

from ..messages import shown

MOST_PATTERNS = 5_000
LONGEST_PATTERNS = 100_000
"""Characters of all patterns together. A trainer writes one pattern for each module, of some fifty characters."""


class NamePatterns:
    """A number for each module name that matches a pattern: PEFT's `get_pattern_key`.

    Args:
        values: pattern → value. A pattern is a regular expression for the whole name or for its end, after a dot.

    Raises:
        ValueError: a pattern is not one, or the patterns are more than a trainer writes.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        length = sum(map(len, values))
        if len(values) > MOST_PATTERNS or length > LONGEST_PATTERNS:
            raise ValueError(f"{len(values)} patterns of {length} characters are more than a trainer writes")
        if values:  # all as one, since the engine limits the size of one alone
            _compiled("|".join(values))
        self._values = [(_compiled(pattern), value) for pattern, value in values.items()]

    def value(self, module: str, default: float) -> float:
        """The value of the first pattern that matches `module`, else `default`."""
        return next((value for pattern, value in self._values if _matches(pattern, module)), default)


def _compiled(pattern: str) -> SchemaValidator:
    whole = rf"^(?:.*\.)?(?:{pattern})$"
    try:
        return SchemaValidator(core_schema.str_schema(pattern=whole, regex_engine="rust-regex"))
    except SchemaError as error:
        reason = str(error).splitlines()[-1].strip().removeprefix("error: ")
        raise ValueError(f"'{shown(pattern)}' is no pattern for module names ({reason})") from None


def _matches(pattern: SchemaValidator, name: str) -> bool:
    try:
        pattern.validate_python(name)
    except ValidationError:
        return False
    return True
