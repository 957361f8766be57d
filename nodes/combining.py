"""The node that makes one reward of several."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..rewards.combined import NORMALISATIONS, UNREADABLE, CombinedReward, Normalise, Unreadable
from ..rewards.protocol import Reward
from .scoring import RewardType
from .search import search_aliases


class RLGCombineRewards(io.ComfyNode):
    """The weighted sum of up to four rewards."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGCombineRewards",
            display_name="RLG Combine Rewards",
            category="RLG/evaluation",
            description="One reward that is the weighted sum of several: to score by, or to train on. More than four: "
            "combine combinations.",
            **search_aliases("reward mix", "weighted reward", "multi reward", "sum of rewards"),
            inputs=[
                RewardType.Input("reward_1", tooltip="The first reward, from RLG Load Reward."),
                _weight_input(1),
                io.Combo.Input(
                    "normalise",
                    options=list(NORMALISATIONS),
                    default="none",
                    tooltip="none: scores count in their own scales, which differ (pickscore about 20, hps about 0.3): "
                    "balance them by the weights. standard deviation: each counts in standard deviations from its mean "
                    "over the pictures scored together, two or more; a score then depends on the others in its batch.",
                ),
                *(each for number in (2, 3, 4) for each in _reward_inputs(number)),
                io.Combo.Input(
                    "unreadable",
                    options=list(UNREADABLE),
                    default="refuse",
                    optional=True,
                    tooltip="Prompts that one of the rewards cannot read, as text_rendering none without quotes. "
                    "refuse: an error. leave out: that reward does not count for them, so that one list can hold "
                    "prompts for each reward.",
                ),
            ],
            outputs=[RewardType.Output(display_name="reward", tooltip="Their sum, for RLG Score and for training.")],
        )

    @classmethod
    def execute(
        cls,
        reward_1: Reward,
        weight_1: float,
        normalise: Normalise,
        reward_2: Reward | None = None,
        weight_2: float = 1.0,
        reward_3: Reward | None = None,
        weight_3: float = 1.0,
        reward_4: Reward | None = None,
        weight_4: float = 1.0,
        unreadable: Unreadable = "refuse",
    ) -> io.NodeOutput:
        given = ((reward_1, weight_1), (reward_2, weight_2), (reward_3, weight_3), (reward_4, weight_4))
        rewards = [(reward, weight) for reward, weight in given if reward is not None]
        return io.NodeOutput(CombinedReward(rewards, normalise, unreadable))


def _reward_inputs(number: int) -> tuple[io.Custom.Input, io.Float.Input]:
    return (
        RewardType.Input(f"reward_{number}", optional=True, tooltip="One more reward; not connected = none."),
        _weight_input(number, optional=True),
    )


def _weight_input(number: int, optional: bool = False) -> io.Float.Input:
    return io.Float.Input(
        f"weight_{number}",
        default=1.0,
        min=-1000.0,
        max=1000.0,
        step=0.1,
        round=0.0001,
        optional=optional,
        tooltip=f"How much reward_{number} counts: 1 = as it is, 0 = it is not asked at all, below 0 = the lower the "
        "better.",
    )
