"""What can go wrong in a program without being a bug in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class EvaluationError(Exception):
    """The message is one sentence: what is wrong, and what to do about it."""


@contextmanager
def refusing(place: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors about what stands at a place in the plan ("": they name it) into one sentence that names it."""
    try:
        yield
    except errors as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise EvaluationError(f"{place and f'{place}: '}{text.rstrip('.')}.") from error
