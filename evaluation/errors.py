"""What can go wrong in an evaluation without being a bug in it."""

from __future__ import annotations


class EvaluationError(Exception):
    """The message is one sentence: what is wrong, and what to do about it."""
