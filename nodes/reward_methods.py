"""Training methods whose gradient goes from the score through the picture; they need a reward with a gradient."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.v0_0_2 import io

from ..training.methods.presets import IMAGE_REFL, REFL, SRPO, draft_k
from . import training_inputs
from .search import search_aliases


class RLGReFL(io.ComfyNode):
    """ReFL; with images ImageReFL, with several last steps DRaFT-K."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGReFL",
            display_name="RLG ReFL",
            category="RLG/training",
            description="ReFL (arXiv 2304.05977), ImageReFL (2505.22569) and DRaFT-K (2309.17400): the gradient goes "
            "from the score through the picture into the last steps. Learns fast; needs a reward with a gradient.",
            **search_aliases("rl method", "imagerefl", "draft", "reward gradient", "reward feedback learning"),
            inputs=[
                *training_inputs.sampling_inputs(steps=40, cfg=1.0),
                io.Int.Input(
                    "first_step",
                    default=30,
                    min=0,
                    max=199,
                    tooltip="The gradient begins at a random step, at this one or later.",
                ),
                io.Int.Input(
                    "last_step",
                    default=39,
                    min=0,
                    max=199,
                    tooltip="The gradient begins at a random step, at this one or earlier.",
                ),
                io.Int.Input(
                    "last_steps",
                    default=1,
                    min=1,
                    max=50,
                    tooltip="1 = the gradient passes through one step (ReFL). More = through the last steps, as many "
                    "as this (DRaFT-K): first_step and last_step are then not used, and it takes more memory.",
                ),
                io.Float.Input(
                    "reward_weight",
                    default=0.001,
                    min=0.0,
                    max=100.0,
                    step=0.001,
                    round=1e-9,
                    tooltip="Size of the whole loss, the images' part included. image_weight sets their balance, "
                    "learning_rate the speed.",
                ),
                training_inputs.groups_input(4),
                training_inputs.group_size_input(1, "Pictures per prompt; one is enough here.", least=1),
                training_inputs.image_weight_input(0.01),
                io.Int.Input(
                    "image_step",
                    default=30,
                    min=0,
                    max=199,
                    tooltip="Only with images: the step that they are noised to. Later keeps more of them.",
                ),
                training_inputs.images_input(": training starts from them (ImageReFL). Not connected: from noise."),
            ],
            outputs=[training_inputs.method_output()],
        )

    @classmethod
    def execute(
        cls,
        steps: int,
        first_step: int,
        last_step: int,
        last_steps: int,
        image_weight: float,
        image_step: int,
        images: torch.Tensor | None = None,
        **settings: float,
    ) -> io.NodeOutput:
        if last_steps > 1:
            method = replace(draft_k(last_steps, steps), image_step=image_step)
        else:
            preset = REFL if images is None else IMAGE_REFL
            method = replace(preset, steps=steps, first_step=first_step, last_step=last_step, image_step=image_step)
        if images is not None:
            method = replace(method, from_images=True, image_weight=image_weight)
        return io.NodeOutput(training_inputs.ChosenMethod(replace(method, **settings), images))


class RLGSRPO(io.ComfyNode):
    """SRPO: Direct-Align's gradient at any noise level, and a reward that compares two words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGSRPO",
            display_name="RLG SRPO",
            category="RLG/training",
            description="SRPO (arXiv 2509.06942): one picture gets noise that is known and is recovered after a single "
            "step; the reward compares it under a wanted and an unwanted word. Needs a reward with a gradient.",
            **search_aliases("rl method", "direct-align", "direct align", "reward gradient"),
            inputs=[
                *training_inputs.sampling_inputs(steps=25, cfg=1.0),
                training_inputs.groups_input(4),
                io.String.Input(
                    "wanted",
                    default=", ".join(SRPO.wanted),
                    tooltip="Words that the reward should prefer, separated by commas: the next one each iteration, "
                    "put before the prompt. The defaults were chosen for hps_v2.1 and a photographic look.",
                ),
                io.String.Input(
                    "unwanted",
                    default=", ".join(SRPO.unwanted),
                    tooltip="Words to get away from, in the same way. They hold the model where a KL would: the "
                    "difference of both counts.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=SRPO.start_percent,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="The noisiest steps that are trained, as a share of sampling: 0.0 = noise alone, which "
                    "spoils the composition.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=SRPO.end_percent,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="The last steps that are trained. Later ones learn colours and tricks sooner.",
                ),
                training_inputs.images_input(
                    ", in place of sampled ones: much faster. Not connected: each is sampled first."
                ),
            ],
            outputs=[training_inputs.method_output()],
        )

    @classmethod
    def execute(
        cls, wanted: str, unwanted: str, images: torch.Tensor | None = None, **settings: float
    ) -> io.NodeOutput:
        words = {"wanted": _words(wanted), "unwanted": _words(unwanted)}
        method = replace(SRPO, from_images=images is not None, **words, **settings)
        return io.NodeOutput(training_inputs.ChosenMethod(method, images))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
