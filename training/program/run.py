"""A training run in this process: ComfyUI is started, what the plan names is loaded, and the run goes to its end."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluation.errors import EvaluationError, refusing
from evaluation.host import Extension, HostSettings, host_version, start_host
from evaluation.models import load_models
from files.pictures import image_name, png, write_bytes
from training.program.plan import Plan, widgets
from training.team import Team

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know."""

    plan: Plan
    host: HostSettings


@dataclass(frozen=True)
class Step:
    """What is to be seen after an iteration.

    Attributes:
        number: of the iteration, from 1; 0 before the first.
        status: a line on how it goes.
    """

    number: int
    status: str


class TrainingRun:
    """A worker's part of a run.

    Args:
        plan: what is trained.
        extension: our nodes in the ComfyUI of this process.
        place, size: of this worker in its team; see `training.team.Team`.

    Attributes:
        until: number of iterations of the whole run.

    Raises:
        EvaluationError: the plan asks for what cannot be.
    """

    @torch.inference_mode()  # as the host runs nodes
    def __init__(self, plan: Plan, extension: Extension, place: int = 0, size: int = 1) -> None:
        self._extension = extension
        node = extension.module("nodes.training")
        team = Team(place, size)  # of this package, so that processes without the extension know what it raises
        inputs = widgets(extension.node("RLGTrainLora"), plan.inputs)
        del inputs["prompts"]
        self._keeps_files = place == 0
        if self._keeps_files and (answer := extension.node("RLGTrainLora").validate_inputs(inputs["name"])) is not True:
            raise EvaluationError(answer)
        self.until, every = inputs["iterations"], inputs.pop("preview_every")
        size_of = inputs["width"], inputs["height"]
        texts, pictures = team.from_first(lambda: _material(plan, *size_of, extension))
        shown = node.lines([inputs.pop("preview_prompts")]) or texts[:2]
        images = None if pictures is None else extension.module("rewards.pixels").to_image(pictures)
        method, self._reward = chosen_method(plan, extension, images), load_reward(plan, extension)
        model, clip, vae = load_models(plan, extension)
        with refusing("", ValueError, OSError):
            self._trainer, self._folder = node.begin(model, clip, vae, texts, self._reward, method, **inputs, team=team)
            wanted = every if self._keeps_files else 0
            self._previews = node.previews(self._trainer, clip, shown, inputs["negative"], wanted)

    def describe(self) -> dict[str, Any]:
        """What all workers of a team have in common."""
        versions = {"ComfyUI": host_version(), "torch": torch.__version__}
        return {**versions, "iterations": self.until, **self._trainer.fingerprint}

    @torch.inference_mode()
    def train(self, during: Callable[[float], None] = lambda share: None) -> Iterator[Step]:
        """Make the iterations that are missing, and save the LoRA.

        Args:
            during: told the finished share of the present iteration, 0 … 1.

        Raises:
            EvaluationError: it cannot go on; what was learned is kept.
            WorkerLost: another worker has ended; as above.
        """
        saved = 0
        try:
            with refusing("", ValueError, OSError):
                self._show()
                yield self._step()
                for _ in self._trainer.iterate(self.until, during):
                    if self._keeps_files and self._trainer.written > saved:
                        # A worker is killed without a last word: its LoRA is then as old as the state.
                        saved = self._trainer.written
                        self._save_between()
                    if self._previews is not None and self._previews.is_due:
                        self._show()
                    yield self._step()
        finally:
            if self._trainer.history and self._keeps_files:
                with refusing("", OSError):
                    self._trainer.save(self._folder)

    def _save_between(self) -> None:
        """The state is kept already: what cannot be written now is no reason to end, and is written at the end."""
        try:
            self._trainer.save(self._folder)
        except OSError as error:
            logger.warning("%s Training goes on.", error)

    def report(self) -> str:
        """What came of it."""
        progress = self._extension.module("training.progress")
        history = self._trainer.history
        found = progress.beyond(history, self.until), progress.outcome(history, self._reward.name)
        return "\n".join(filter(None, [self._trainer.started_anew, *found, f"The LoRA is in {self._folder}"]))

    def _step(self) -> Step:
        history = self._trainer.history
        return Step(len(history), self._extension.module("training.progress").status(history, self.until))

    def _show(self) -> None:
        """Write a preview beside the state of the run."""
        if self._previews is not None:
            (picture,) = self._extension.module("rewards.pixels").to_bytes(self._previews.picture())
            folder = self._trainer.checkpoint.with_suffix("")
            write_bytes(folder / image_name(len(self._trainer.history)), png(picture))


def started(job: Job, place: int = 0, size: int = 1) -> TrainingRun:
    """A run in a process that has no ComfyUI yet; arguments and errors are those of `TrainingRun`."""
    if job.plan.threads:
        torch.set_num_threads(job.plan.threads)
    return TrainingRun(job.plan, start_host(job.host), place, size)


def _material(plan: Plan, width: int, height: int, extension: Extension) -> tuple[list[str], np.ndarray | None]:
    """The prompts, and the real pictures of that size where there are some, (count, height, width, 3) uint8."""
    pictures = plan.read_images()
    if not pictures:
        return plan.prompts.read(), None
    with refusing("", ValueError):
        extension.module("nodes.training_images").check_pictures("images", len(pictures), width, height)
    with refusing("images", ValueError):  # a damaged file
        return [one.caption for one in pictures], np.stack([one.pixels(width, height) for one in pictures])


def load_reward(plan: Plan, extension: Extension) -> Any:
    """The reward, or the sum of several.

    Raises:
        EvaluationError: there is none of a name, its weights are not there, or all count nothing.
    """
    loaded = []
    registry = extension.module("rewards.registry")
    for index, wanted in enumerate(plan.rewards):
        with refusing(f"rewards[{index}]", ValueError, OSError, ImportError):
            loaded.append((registry.load(wanted.name, wanted.file), wanted.weight))
    if len(loaded) == 1 and loaded[0][1] == 1.0:
        return loaded[0][0]
    with refusing("rewards", ValueError):
        return extension.module("rewards.combined").CombinedReward(loaded, plan.normalise, plan.unreadable)


def chosen_method(plan: Plan, extension: Extension, images: torch.Tensor | None = None) -> Any:
    """What the node of the plan's method makes of its inputs.

    Args:
        images: real pictures to learn from, one per prompt.

    Raises:
        EvaluationError: there is no such node, or it refuses them.
    """
    ((name, given),) = plan.method.items()
    nodes = {_plain(id_): id_ for id_ in extension.nodes_that_give("RLG_METHOD")}
    if _plain(name) not in nodes:
        raise EvaluationError(f"method: there is no '{name}'; use one of {', '.join(nodes.values())}.")
    node_id = nodes[_plain(name)]
    with refusing(f"method.{name}", ValueError):
        node = extension.node(node_id)
        inputs = widgets(node, given, f"method.{name}.")
        if images is not None:
            if "images" not in node.INPUT_TYPES().get("optional", {}):
                raise EvaluationError(
                    f"images: {name} does not learn from pictures; take refl, srpo or ddpo, or prompts."
                )
            inputs["images"] = images
        (method,) = extension.run_node(node_id, **inputs)
    return method


def _plain(name: str) -> str:
    """The name of a method as one writes it: Flow-GRPO, flow_grpo and RLGFlowGRPO are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("rlg")
