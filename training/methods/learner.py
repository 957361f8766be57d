"""What the learners of all methods share: groups of pictures of one prompt each, in parts that are computed together,
divided among workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from ..iteration import Learned, Report
from ..policy.host_model import HostModel, Run
from ..task import Task
from ..team import Team
from .rollout import Pictures, chunks
from .settings import Method

Made = TypeVar("Made")


class Learner(ABC):
    """Makes the iterations of a method.

    Args:
        method: its settings.
        task: what is trained for.
        host: the model with the policy, on the task's prompts and the method's sigmas.
        batch_size: pictures per call of the model.
        seed: of the run.
        team: who makes the groups.

    Raises:
        ValueError: the task has not all that the method learns from.
    """

    def __init__(self, method: Method, task: Task, host: HostModel, batch_size: int, seed: int, team: Team) -> None:
        self._method, self._task, self._host, self._team, self._seed = method, task, host, team, seed
        self._parts = chunks(method.groups, method.group_size, batch_size)
        """(group, its pictures that are computed together), all workers'."""
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Check that the task has what the method learns from, and begin what it keeps; errors are the class's."""

    @abstractmethod
    def iterate(self, iteration: int, step: Callable[[], float], report: Report) -> Learned:
        """Make an iteration.

        Args:
            iteration: its number; all that is random in it follows from that.
            step: takes an optimiser step with the gradients that there are, and returns their norm.
            report: told how far it is.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """What later iterations depend on."""
        return {}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:  # noqa: B027 - most methods keep nothing
        """Go on from what `tensors` gave."""

    def _check_scores(self) -> None:
        """Raises ValueError: the reward cannot score as many pictures as are computed together."""
        self._task.check_scores(min(len(rows) for _, rows in self._parts))

    def _prompts(self, iteration: int) -> list[int]:
        """The number of each picture's prompt, all workers'."""
        chosen = self._task.prompts.chosen(self._seed, iteration, self._method.groups)
        return [prompt for prompt in chosen for _ in range(self._method.group_size)]

    def _own(self, iteration: int) -> dict[int, Pictures]:
        """This worker's pictures of an iteration, by the number of their part."""
        prompts = self._task.prompts.chosen(self._seed, iteration, self._method.groups)
        shape = self._task.latent_shape
        return {
            number: Pictures.of(self._seed, iteration, prompts[group], group, rows, shape)
            for number, (group, rows) in enumerate(self._parts)
            if self._team.makes(group)
        }

    def _drawn(
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
        method, own = self._method, self._own(iteration)
        scores = torch.zeros(method.groups, method.group_size, self._task.sum.count, dtype=torch.float64)
        made: dict[int, Made] = {}
        for number, pictures in own.items():
            made[number] = draw(pictures)
            report(0.4 * len(made) / len(own))
        # After all of them: where memory is short the model gives way to the VAE and the reward once, not each time.
        for done, (number, pictures) in enumerate(own.items(), 1):
            group, rows = self._parts[number]
            asked = [pictures.prompt] * len(rows)
            scores[group, rows.start : rows.stop] = self._task.scores(self._task.decoded(latents(made[number])), asked)
            report(0.4 + 0.1 * done / len(own))
        return made, self._team.total(scores).flatten(0, 1)

    def _by_part(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Of each part, the values of its pictures, of (pictures,)."""
        return list(values.split([len(rows) for _, rows in self._parts]))

    def _with_model(
        self, prompt: int, rows: int, body: Callable[[Run], Made], sigmas: torch.Tensor | None = None
    ) -> Made:
        """What `body` does while the model is loaded, for so many pictures of a prompt; see `HostModel.run`."""
        return self._host.run(prompt, torch.Size((rows, *self._task.latent_shape)), body, sigmas)
