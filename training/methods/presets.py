"""The published methods, with the numbers of their authors' code."""

from __future__ import annotations

from dataclasses import replace

from .settings import DirectAlign, ForwardProcess, PolicyGradient, RewardGradient

FLOW_GRPO = PolicyGradient("Flow-GRPO", "arXiv 2505.05470, yifan123/flow_grpo config/grpo.py")
"""As its authors train SD3.5 medium, with 4 prompts per iteration in place of 48 on their 32 GPUs, and an average that
is updated each time in place of each eighth time, so that early it is one over fewer updates."""

DDPO = PolicyGradient(
    "DDPO", "arXiv 2401.12244, pinterest/atg-research joint-rl-diffusion",
    steps=50, cfg=7.0, noise_level=1.0, trained_steps=5, compared_with="batch", kl_weight=0.0, largest_advantage=10.0,
    through_negative=True,
)  # fmt: skip
"""As Pinterest trains at scale: a batch of all prompts, five random steps. They take a step of the optimiser after each
of the five, and do not clip gradients."""

B2_DIFFU_RL = PolicyGradient(
    "B²-DiffuRL", "arXiv 2503.11240, hu-zijing/B2-DiffuRL run_process.sh",
    steps=20, cfg=5.0, noise_level=1.0, groups=16, group_size=5, tail=(14, 20), compared_with="branch", kl_weight=0.0,
    clip_range=0.1, through_negative=True,
)  # fmt: skip
"""Backward progressive training and branch-based sampling, with 16 branchings per iteration in place of 256, and each
learned from once in place of twice."""

REFL = RewardGradient("ReFL", "arXiv 2304.05977, as in ControlGenAI/ImageReFL refl_train.yaml")

IMAGE_REFL = replace(
    REFL, name="ImageReFL", source="arXiv 2505.22569, ControlGenAI/ImageReFL", from_images=True, image_weight=0.01
)
"""From real images, and with a diffusion loss on them."""

DIFFUSION_NFT = ForwardProcess("DiffusionNFT", "arXiv 2509.16117, NVlabs/DiffusionNFT config/nft.py sd3_geneval")
"""As its authors train SD3.5 medium on GenEval, with 4 prompts per iteration in place of 48 on 8 GPUs, Euler's steps in
place of a second-order solver's, and all 10 noise levels in place of a random 9 of them."""

SRPO = DirectAlign("SRPO", "arXiv 2509.06942, Tencent-Hunyuan/SRPO SRPO_training_hpsv2.sh")
"""As its authors train FLUX.1-dev on HPS v2.1, with 4 prompts per iteration in place of 32. Without their threshold,
0.7 of a reward that is about 0.3; scores of other rewards are on other scales."""


def draft_k(last_steps: int, steps: int = 40) -> RewardGradient:
    """DRaFT-K: the gradient passes through the last K of `steps`."""
    first = steps - last_steps
    return RewardGradient(
        "DRaFT-K", "arXiv 2309.17400", steps=steps, first_step=first, last_step=first, gradient_steps=last_steps
    )
