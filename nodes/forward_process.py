"""The training method that learns from finished pictures with noise added; it works with any reward."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.v0_0_2 import io

from ..training.methods.presets import DIFFUSION_NFT
from . import training_inputs
from .search import search_aliases


class RLGDiffusionNFT(io.ComfyNode):
    """DiffusionNFT: good and bad pictures are contrasted where noise is added to them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGDiffusionNFT",
            display_name="RLG DiffusionNFT",
            category="RLG/training",
            description="DiffusionNFT (arXiv 2509.16117): pictures are sampled without noise on the way, and learned "
            "from with noise added: drawn to the good ones, away from the bad ones. Works with any reward, also one "
            "without a gradient; with trained_steps 4 and kl_weight 0 an iteration takes about half of Flow-GRPO's "
            "time.",
            **search_aliases("rl method", "diffusion nft", "forward process", "negative aware fine-tuning"),
            inputs=[
                *training_inputs.sampling_inputs(steps=DIFFUSION_NFT.steps, cfg=DIFFUSION_NFT.cfg),
                training_inputs.groups_input(DIFFUSION_NFT.groups),
                training_inputs.group_size_input(DIFFUSION_NFT.group_size),
                io.Int.Input(
                    "trained_steps",
                    default=DIFFUSION_NFT.trained_steps,
                    min=0,
                    max=200,
                    tooltip="How many random noise levels of each group are learned from. 0 = all; 4 of 10 is faster.",
                ),
                io.Float.Input(
                    "beta",
                    default=DIFFUSION_NFT.beta,
                    min=0.01,
                    max=10.0,
                    step=0.1,
                    round=1e-4,
                    tooltip="How far the compared models are from the one that drew. 1.0, or 0.1 for text and for "
                    "several rewards, as the authors; smaller learns faster and less steadily.",
                ),
                io.Float.Input(
                    "kl_weight",
                    default=DIFFUSION_NFT.kl_weight,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    round=1e-6,
                    tooltip="How strongly the LoRA is held near the base. 0 = not at all: faster, as the base is not "
                    "asked.",
                ),
                io.Float.Input(
                    "largest_advantage",
                    default=DIFFUSION_NFT.largest_advantage,
                    min=0.1,
                    max=100.0,
                    step=0.5,
                    round=0.01,
                    tooltip="So many standard deviations above its group's mean, a picture counts as wholly good; as "
                    "many below, as wholly bad.",
                ),
            ],
            outputs=[training_inputs.method_output()],
        )

    @classmethod
    def execute(cls, **settings: float) -> io.NodeOutput:
        return io.NodeOutput(training_inputs.ChosenMethod(replace(DIFFUSION_NFT, **settings)))
