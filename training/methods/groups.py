"""Pictures of an iteration: groups of one prompt each, in parts that are computed together, shared among workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..iteration import Report
from ..task import Task
from ..team import Team
from .rollout import Pictures, chunks
from .settings import ForwardProcess, PolicyGradient

Made = TypeVar("Made")


class Groups:
    """How a method that compares pictures draws them and has them scored.

    Args:
        method: says how many groups there are, and of how many pictures.
        task: what is trained for.
        batch_size: pictures per call of the model.
        seed: of the run.
        team: who makes the groups.

    Attributes:
        parts: (group, its pictures that are computed together), all workers'.

    Raises:
        ValueError: the reward cannot score as many pictures as are computed together.
    """

    def __init__(
        self, method: PolicyGradient | ForwardProcess, task: Task, batch_size: int, seed: int, team: Team
    ) -> None:
        self._groups, self._size = method.groups, method.group_size
        self._task, self._seed, self._team = task, seed, team
        self.parts = chunks(method.groups, method.group_size, batch_size)
        task.check_scores(min(len(rows) for _, rows in self.parts))

    def prompts(self, iteration: int) -> list[int]:
        """The number of each picture's prompt, all workers'."""
        chosen = self._task.prompts.chosen(self._seed, iteration, self._groups)
        return [prompt for prompt in chosen for _ in range(self._size)]

    def drawn(
        self,
        iteration: int,
        draw: Callable[[Pictures], Made],
        latents: Callable[[Made], torch.Tensor],
        report: Report,
    ) -> tuple[dict[int, Made], torch.Tensor]:
        """Draw this worker's pictures, then have them scored: half of an iteration.

        Args:
            iteration: its number.
            draw: makes the pictures of a part.
            latents: of what it made, those of the pictures, as the model sees them.
            report: told how far it is.

        Returns:
            What was made, by the number of the part, and all workers' (pictures, rewards) scores.
        """
        own = [number for number, (group, _) in enumerate(self.parts) if self._team.makes(group)]
        pictures = {number: self._pictures(iteration, number) for number in own}
        scores = torch.zeros(self._groups, self._size, self._task.sum.count, dtype=torch.float64)
        made: dict[int, Made] = {}
        for number in own:
            made[number] = draw(pictures[number])
            report(0.4 * len(made) / len(own))
        # After all of them: where memory is short the model gives way to the VAE and the reward once, not each time.
        for done, number in enumerate(own, 1):
            group, rows = self.parts[number]
            asked = [pictures[number].prompt] * len(rows)
            scores[group, rows.start : rows.stop] = self._task.scores(self._task.decoded(latents(made[number])), asked)
            report(0.4 + 0.1 * done / len(own))
        return made, self._team.total(scores).flatten(0, 1)

    def by_part(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Of each part, the values of its pictures, of (pictures,)."""
        return list(values.split([len(rows) for _, rows in self.parts]))

    def _pictures(self, iteration: int, number: int) -> Pictures:
        group, rows = self.parts[number]
        prompt = self._task.prompts.chosen(self._seed, iteration, self._groups)[group]
        return Pictures.of(self._seed, iteration, prompt, group, rows, self._task.latent_shape)
