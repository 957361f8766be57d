"""What a training run has to say of itself: how long it will take, and what was learned."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trainer import Iteration

_RECENT = 10


def seconds_left(history: Sequence[Iteration], until: int) -> float:
    """How long the iterations that are missing will take, by the median of the last ones; 0 where none is known."""
    recent = [entry.seconds for entry in history[-_RECENT:]]
    return statistics.median(recent) * max(until - len(history), 0) if recent else 0.0


def in_words(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def status(history: Sequence[Iteration], until: int, memory: str = "") -> str:
    """One line while a run goes on.

    Args:
        history: of the run.
        until: number of iterations of the whole run.
        memory: what it takes, for a line before the first iteration is done.
    """
    if not history:
        return f"drawing the first pictures; {memory}" if memory else "drawing the first pictures"
    last = history[-1]
    left = seconds_left(history, until)
    return f"iteration {last.number} of {max(until, last.number)}, reward {last.reward:.4g}, {in_words(left)} left"


def outcome(history: Sequence[Iteration], reward: str) -> str:
    """What a run came to, as a sentence."""
    share = max(len(history) // 10, 1)
    first, last = (statistics.fmean(e.reward for e in part) for part in (history[:share], history[-share:]))
    whole = in_words(sum(entry.seconds for entry in history))
    kl = f"KL to the base {history[-1].kl:.3g}; " if any(entry.kl for entry in history) else ""
    return (
        f"{reward}: {first:.4g} in the first {share} of {len(history)} iterations, {last:.4g} in the last; "
        f"{kl}{whole} of training."
    )


def beyond(history: Sequence[Iteration], until: int) -> str:
    """A sentence where a run has more iterations than are asked for now; else "".

    Args:
        history: of the run.
        until: number of iterations that are asked for.
    """
    done = len(history)
    if done <= until:
        return ""
    return (
        f"iterations: this run has made {done} already, and its LoRA is that of {done}; for one of {until}, choose "
        "another name."
    )
