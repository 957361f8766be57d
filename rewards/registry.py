"""Which rewards there are, and how to make one by its name."""

from __future__ import annotations

from .aesthetic import Aesthetic
from .clip_rewards import ClipScore, Hps, PickScore
from .geneval import GenEval
from .image_reward import ImageReward, vocabulary_of
from .jpeg import JpegCompressibility, JpegIncompressibility
from .mps import Mps
from .protocol import Reward
from .published import CLIP_L, Kind, Kinds, Published
from .text_rendering import TextRendering

KINDS: Kinds[Reward] = Kinds(
    "reward",
    "{}",
    {
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
                "MPS_overall_checkpoint.pth",
                "https://github.com/Kwai-Kolors/MPS (a link in its README)",
                "*mps_overall*",
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
    },
)

load, files_of = KINDS.load, KINDS.files_of
