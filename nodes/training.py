"""The node that makes the tuned model: RL fine-tuning of a LoRA on the model that is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import folder_paths
import numpy as np
from comfy_api.v0_0_2 import io

from ..files.names import can_be_a_folder
from ..plots.figure import check_available, picture
from ..plots.training_curve import training_curve
from ..rewards.pixels import to_image
from ..rewards.protocol import Reward, check_prompts
from ..rlg_sampler.messages import shown as one_line
from ..rlg_sampler.weights.lora_file import load_lora
from ..training.policy.prompts import Prompts, numbers_in
from ..training.previews import Previews
from ..training.progress import beyond, outcome
from ..training.task import Task
from ..training.team import ALONE, Team
from ..training.trainer import Settings, Trainer
from .inputs import answer, seed_input
from .lists import only
from .live_training import EVENT, LiveTraining
from .scoring import RewardType
from .search import search_aliases
from .training_inputs import ChosenMethod, MethodType, size_input

_NAME = re.compile(r"\w[\w .+-]*")
_LONGEST_NAME = 200
"""Bytes: a letter may take four, and file systems take 255 with what is added."""
_MOST_PREVIEWS = 4


class RLGTrainLora(io.ComfyNode):
    """RL fine-tunes a LoRA and hands on the tuned MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGTrainLora",
            display_name="RLG Train LoRA",
            category="RLG/training",
            description="Makes the RL-tuned model itself: draws pictures for the prompts, has the reward score them "
            "and trains a LoRA towards higher scores. Cancel keeps what was learned; run it again to go on.",
            **search_aliases("rl fine-tuning", "reinforcement learning", "flow-grpo", "grpo", "ddpo"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL to tune; it is left as it is. Connect it to 'base' later."),
                io.Clip.Input("clip", tooltip="Its text encoders, for the prompts."),
                io.Vae.Input("vae", tooltip="Its VAE: the reward looks at finished pictures."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="What to train on, one prompt per line, or connect RLG Load Prompts. Some dozens at least: "
                    "with few prompts the model learns these alone.",
                ),
                RewardType.Input("reward", tooltip="What pictures are worth, from RLG Load Reward."),
                MethodType.Input("method", tooltip="How the gradient is made, such as RLG Flow-GRPO."),
                io.String.Input(
                    "name",
                    default="my_rl_lora",
                    tooltip="The LoRA's folder in output/loras, where the LoRA loaders find it (press R). The same "
                    "name with the same settings goes on with its training.",
                ),
                io.Int.Input(
                    "iterations",
                    default=100,
                    min=1,
                    max=100_000,
                    tooltip="Rounds of drawing, scoring and learning, in all. Raise it and run again to train on.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-4,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=1e-9,
                    tooltip="Size of the steps. 3e-4 as in Flow-GRPO; lower it if pictures fall apart.",
                ),
                io.Int.Input(
                    "rank", default=32, min=1, max=512, tooltip="Size of the LoRA. 32 as in Flow-GRPO; 8 learns less."
                ),
                # It stays as it is after a run: another one would start the training anew.
                seed_input(
                    "For everything random in the run. The same settings with the same seed make the same LoRA."
                ),
                size_input("width", "Of the pictures, in pixels.", optional=True),
                size_input("height", "Of the pictures, in pixels.", optional=True),
                io.String.Input(
                    "negative",
                    default="",
                    optional=True,
                    tooltip="The negative prompt, where the method's cfg is above 1.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip="Pictures computed at once. Lower it if memory runs out; it then takes longer.",
                ),
                io.String.Input(
                    "preview_prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Up to four prompts, one per line, that are shown while training: base model above, tuned "
                    "below. Empty = the first two of prompts.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=5,
                    min=0,
                    max=10_000,
                    optional=True,
                    tooltip="Iterations between previews. 0 = none.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="tuned", tooltip="The MODEL with the LoRA, for 'tuned' of the RLG nodes."),
                io.String.Output(display_name="lora_name", tooltip="The LoRA's name, as the loaders list it."),
                io.Image.Output(display_name="curve", tooltip="Reward, distance to the base and clipping so far."),
                io.String.Output(display_name="report", tooltip="What was learned, where it is, and how long it took."),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | list[str] | None = None) -> bool | str:
        return answer(_check_name, only(name))

    @classmethod
    def execute(
        cls,
        model: list[io.Model.Type],
        clip: list[io.Clip.Type],
        vae: list[io.Vae.Type],
        prompts: list[str],
        reward: list[Reward],
        method: list[ChosenMethod],
        name: list[str],
        iterations: list[int],
        learning_rate: list[float],
        rank: list[int],
        seed: list[int],
        width: Sequence[int] = (512,),
        height: Sequence[int] = (512,),
        negative: Sequence[str] = ("",),
        batch_size: Sequence[int] = (4,),
        preview_prompts: Sequence[str] = ("",),
        preview_every: Sequence[int] = (5,),
    ) -> io.NodeOutput:
        check_available()
        until, texts = iterations[0], lines(prompts)
        trainer, folder = begin(
            model[0],
            clip[0],
            vae[0],
            texts,
            reward[0],
            method[0],
            name=name[0],
            iterations=until,
            learning_rate=learning_rate[0],
            rank=rank[0],
            seed=seed[0],
            width=width[0],
            height=height[0],
            negative=negative[0],
            batch_size=batch_size[0],
        )
        shown = lines(preview_prompts) or texts[:2]
        node = cls.hidden.unique_id if cls.hidden else None  # a script calls nodes without an executor
        live = LiveTraining(node, trainer, until, previews(trainer, clip[0], shown, negative[0], preview_every[0]))
        try:
            for _ in trainer.iterate(until, live.during):
                live.after_iteration()
        except BaseException:
            live.stopped()
            raise
        finally:
            if trainer.history:
                path = trainer.save(folder)
        tuned, loaded = load_lora(model[0], path, name[0], 1.0)
        about = trainer.started_anew, beyond(trainer.history, until), outcome(trainer.history, reward[0].name), loaded
        report = "\n".join(filter(None, about))
        drawn = picture(training_curve(trainer.history, reward[0].name, trainer.task.sum.unit_of_weighed))
        curve = to_image(np.array(drawn)[None])
        return io.NodeOutput(tuned, name[0], curve, report, ui={EVENT: [live.course()]})


def begin(
    model: io.Model.Type,
    clip: io.Clip.Type,
    vae: io.Vae.Type,
    texts: Sequence[str],
    reward: Reward,
    method: ChosenMethod,
    *,
    name: str,
    iterations: int,
    learning_rate: float,
    rank: int,
    seed: int,
    width: int,
    height: int,
    negative: str,
    batch_size: int,
    team: Team = ALONE,
) -> tuple[Trainer, Path]:
    """The run of a name, and the folder of its LoRA; arguments are the node's inputs.

    Raises:
        ValueError: the inputs do not fit each other, or the name belongs to another LoRA.
    """
    folder, checkpoint = _places(name)
    if team.place == 0:
        _check_name(name)
    check_prompts(reward, texts)
    # A list of thousands is more than a run comes to; each real image may be asked for at any time, with its prompt.
    asked = min(len(texts), iterations * method.method.groups)
    numbers = numbers_in(range(asked), len(texts), seed) if texts and method.images is None else None
    prompts = Prompts.encode(clip, texts, negative, numbers)
    task = Task(model, vae, prompts, reward, width, height, method.images)
    settings = Settings(learning_rate, rank, seed=seed, batch_size=batch_size)
    return Trainer(task, method.method, settings, checkpoint, team), folder


def previews(trainer: Trainer, clip: io.Clip.Type, shown: Sequence[str], negative: str, every: int) -> Previews | None:
    """Of the first prompts of some; None where no preview is wanted."""
    return Previews(trainer, Prompts.encode(clip, shown[:_MOST_PREVIEWS], negative), every) if every else None


def _check_name(name: str) -> None:
    """Raises ValueError: it is no name for a folder, or that of a LoRA which was not trained here."""
    folder, checkpoint = _places(name)
    if folder.exists() and not checkpoint.exists():
        raise ValueError(f"name: there is a LoRA '{name}' already, and it was not trained here; choose another name.")


def _places(name: str) -> tuple[Path, Path]:
    """Where the LoRA of this name goes, a folder, and its checkpoint, a file.

    Raises:
        ValueError: it is no name for a folder.
    """
    if not _NAME.fullmatch(name) or not can_be_a_folder(name) or len(name) > 100 or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(
            f"name: '{one_line(name)}' cannot be a folder's name; use up to 50 letters, digits, spaces and _ - + ."
        )
    output = Path(folder_paths.get_output_directory())
    return output / "loras" / name, output / "rlg_training" / f"{name}.safetensors"


def lines(texts: Sequence[str]) -> list[str]:
    """Prompts of an input: a list of texts, each a prompt, or one text with one prompt per line."""
    found = texts[0].split("\n") if len(texts) == 1 else texts
    return [text.strip() for text in found if text.strip()]
