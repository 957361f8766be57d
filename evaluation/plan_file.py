"""Plans as files: YAML, and one sentence about the first thing in it that cannot be."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.errors import EvaluationError
from rlg_sampler.messages import shown


class Part(BaseModel):
    """A part of a plan: names that it does not know are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Plan = TypeVar("Plan", bound=Part)


def read_plan(file: Path, kind: type[Plan]) -> Plan:
    """Read a plan of a kind. What validates its parts finds the plan's folder as their context.

    Raises:
        EvaluationError: it cannot be read, or says what cannot be.
    """
    try:
        values = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file} cannot be read ({error}); name the plan, a YAML file in UTF-8.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second: a date such as 2026-02-30
        text = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise EvaluationError(f"{file} is no YAML ({text}); correct it.") from None
    if not isinstance(values, dict):
        raise EvaluationError(f"{file} holds no plan; write names and values, such as scales: [0, 1, 2].")
    try:
        return kind.model_validate(values, context=file.resolve().parent)
    except ValidationError as error:
        raise EvaluationError(f"{file}: {_sentence(error)}") from None


_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose later keys do not silently replace earlier ones of the same name, and whose texts can be written."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise yaml.constructor.ConstructorError(None, None, "half a character, such as \\ud800", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # whose names the mapping's own come before
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # the others are an error below
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{reprlib.repr(key)} is there twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 3e-4 for a text, since it has neither a point nor a plus.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _sentence(error: ValidationError) -> str:
    """The first of the mistakes, and where it is."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    place = shown(place, 200)
    if first["type"] == "missing":
        return f"{place} is missing; add it."
    if first["type"] == "extra_forbidden":
        return f"{place} is not known here; check its spelling, or take it out."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]} (it is {reprlib.repr(first['input'])})".replace("tuple", "list")
    return f"{place}: {message}." if place else f"{message}."
