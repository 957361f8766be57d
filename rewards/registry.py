"""Which rewards there are, and how to make one by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .aesthetic import Aesthetic
from .clip_rewards import ClipScore, Hps, PickScore
from .geneval import GenEval
from .image_reward import ImageReward, vocabulary_of
from .jpeg import JpegCompressibility, JpegIncompressibility
from .mps import Mps
from .protocol import Reward
from .published import CLIP_L, Kind, Published
from .text_rendering import TextRendering

KINDS: Mapping[str, Kind[Reward]] = {
    PickScore.name: Kind(
        PickScore, Published("the folder PickScore_v1", "yuvalkirstain/PickScore_v1 (Hugging Face)", "*pickscore*")
    ),
    ImageReward.name: Kind(
        ImageReward,
        Published("ImageReward.pt", "zai-org/ImageReward (Hugging Face)", "*imagereward.*"),
        vocabulary_of,
    ),
    Hps.name: Kind(Hps, Published("HPS_v2.1_compressed.pt", "xswu/HPSv2 (Hugging Face)", "*hps*v2.1*")),
    Mps.name: Kind(
        Mps,
        Published(
            "MPS_overall_checkpoint.pth", "https://github.com/Kwai-Kolors/MPS (a link in its README)", "*mps_overall*"
        ),
    ),
    Aesthetic.name: Kind(
        Aesthetic,
        Published(
            "sac+logos+ava1-l14-linearMSE.pth",
            "https://github.com/christophschuhmann/improved-aesthetic-predictor",
            "*sac+logos+ava1-l14-linearmse.*",
        ),
        lambda path: CLIP_L.find(Aesthetic.name),
    ),
    ClipScore.name: Kind(ClipScore, CLIP_L),
    TextRendering.name: Kind(TextRendering),
    GenEval.name: Kind(
        GenEval,
        Published(
            "the folder mask2former-swin-small-coco-instance",
            "facebook/mask2former-swin-small-coco-instance (Hugging Face)",
            "*mask2former*coco-instance",
        ),
        lambda path: CLIP_L.find(GenEval.name),
    ),
    JpegCompressibility.name: Kind(JpegCompressibility),
    JpegIncompressibility.name: Kind(JpegIncompressibility),
}


@torch.inference_mode(False)  # weights made in inference mode, in which the host runs nodes, could pass on no gradient
def load(name: str, file: str | None) -> Reward:
    """A reward, ready to score. Nothing is downloaded.

    Args:
        name: a key of KINDS.
        file: of its weights, an entry of `host.weights()`; None takes the published one. Without meaning where there
            are none.

    Raises:
        ValueError: there is no such reward, the weights are not its, several could be meant, or a library is missing.
        FileNotFoundError: the weights are not there; the message says where they come from and belong.
    """
    path = weights_of(name, file)
    return KINDS[name].made(path)


def weights_of(name: str, file: str | None) -> Path | None:
    """Where the weights of a reward lie, with all that belongs to them; None where it has none.

    Arguments and errors are those of `load`, of what can be known before anything is read.
    """
    if name not in KINDS:
        raise ValueError(f"reward: there is no '{name}'; choose one of {', '.join(KINDS)}.")
    return KINDS[name].path(name, file)
