"""Whether a sampler asks for what a run mixes: a guider of another pack may go past the host's wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider


class Asked:
    """Notes it for one run, in which the base would else be sampled alone, and the log would say that it is guided.

    Attributes:
        once: whether the run was asked for a prediction.
    """

    def __init__(self, guider: CFGGuider) -> None:
        self._guider = guider
        self._steps = 0
        self.once = False

    def after_steps(self, callback: Callable | None) -> Callable:
        """`callback`, which samplers call at each step, with a look before it.

        Some call it before their first prediction, so one call alone tells nothing.
        """

        def looked(*args: Any, **kwargs: Any) -> Any:
            self._steps += 1
            if self._steps > 1:
                self.check()
            return None if callback is None else callback(*args, **kwargs)

        return looked

    def check(self) -> None:
        """Raises ValueError where steps were made without the run."""
        if self._steps and not self.once:
            raise ValueError(
                f"model: {type(self._guider).__name__} asks its model past ComfyUI's wrappers, so that the base would "
                "be sampled alone; take another sampler node (for NAG, ComfyUI's own NAGuidance)."
            )
