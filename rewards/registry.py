"""Which rewards there are, and how to make one by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import host
from .aesthetic import Aesthetic
from .clip_rewards import ClipScore, Hps, PickScore
from .image_reward import ImageReward
from .jpeg import JpegCompressibility, JpegIncompressibility
from .protocol import Reward
from .published import CLIP_L, Published
from .text_rendering import TextRendering


@dataclass(frozen=True)
class Kind:
    """How to make a reward.

    Attributes:
        reward: its class, which also says unit, range and source.
        weights: what its class is made from, as a path; None where it has none and is made from nothing.
    """

    reward: Callable[..., Reward]
    weights: Published | None = None

    def make(self, path: Path | None) -> Reward:
        """Raises ValueError if these are not the reward's weights, or a library that it needs is missing."""
        return self.reward() if path is None else self.reward(path)


KINDS: Mapping[str, Kind] = {
    PickScore.name: Kind(
        PickScore, Published("the folder PickScore_v1", "yuvalkirstain/PickScore_v1 (Hugging Face)", "*pickscore*")
    ),
    ImageReward.name: Kind(
        ImageReward, Published("ImageReward.pt", "zai-org/ImageReward (Hugging Face)", "*imagereward.*")
    ),
    Hps.name: Kind(Hps, Published("HPS_v2.1_compressed.pt", "xswu/HPSv2 (Hugging Face)", "*hps*v2.1*")),
    Aesthetic.name: Kind(
        Aesthetic,
        Published(
            "sac+logos+ava1-l14-linearMSE.pth",
            "https://github.com/christophschuhmann/improved-aesthetic-predictor",
            "*sac+logos+ava1-l14-linearmse.*",
        ),
    ),
    ClipScore.name: Kind(ClipScore, CLIP_L),
    TextRendering.name: Kind(TextRendering),
    JpegCompressibility.name: Kind(JpegCompressibility),
    JpegIncompressibility.name: Kind(JpegIncompressibility),
}


def load(name: str, file: str | None) -> Reward:
    """A reward, ready to score. Nothing is downloaded.

    Args:
        name: a key of KINDS.
        file: of its weights, as `files` lists them; None takes the published one. Without meaning where there are none.

    Raises:
        ValueError: there is no such reward, the weights are not its, several could be meant, or a library is missing.
        FileNotFoundError: the weights are not there; the message says where they come from and belong.
    """
    kind = _kind(name)
    return kind.make(None if kind.weights is None else kind.weights.find(name, file))


def files(name: str) -> list[str]:
    """Weights found under the host's `reward_models` folder for this reward; those of the published name come first."""
    published = _kind(name).weights
    if published is None:
        return []
    return sorted(host.weights(), key=lambda file: not published.is_called(file))


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"reward: there is no '{name}'; choose one of {', '.join(KINDS)}.")
    return KINDS[name]
