"""What a user sees: schemas, tooltips and wiring. No tensor math here."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .approximation import RLGApproximate
from .axes import RLGAxis, RLGLoraAxis
from .branching import RLGBranch, RLGSamplerFlowGRPO
from .combining import RLGCombineRewards
from .curves import RLGDiversity, RLGPlot
from .extraction import RLGExtractLora
from .files import RLGLoadPrompts, RLGSaveSet
from .forward_process import RLGDiffusionNFT
from .guidance import RLGGuiderNode, RLGModel
from .loaders import RLGLoadLora, RLGLoadModels
from .policy_methods import RLGDDPO, RLGB2DiffuRL, RLGFlowGRPO
from .reward_methods import RLGSRPO, RLGReFL
from .sampling import RLGKSampler
from .schedules import RLGCombinedGeneration, RLGKeyframes, RLGRamp, RLGScale
from .scoring import RLGLoadReward, RLGPickBest, RLGScore
from .sweep import RLGGrid, RLGSweep
from .training import RLGTrainLora
from .training_images import RLGLoadImages


class RLGExtension(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            RLGLoadModels,
            RLGLoadLora,
            RLGModel,
            RLGGuiderNode,
            RLGKSampler,
            RLGScale,
            RLGCombinedGeneration,
            RLGRamp,
            RLGKeyframes,
            RLGSweep,
            RLGGrid,
            RLGBranch,
            RLGSamplerFlowGRPO,
            RLGLoadReward,
            RLGScore,
            RLGDiversity,
            RLGPlot,
            RLGPickBest,
            RLGLoadPrompts,
            RLGSaveSet,
            RLGExtractLora,
            RLGApproximate,
            RLGTrainLora,
            RLGFlowGRPO,
            RLGDiffusionNFT,
            RLGDDPO,
            RLGB2DiffuRL,
            RLGReFL,
            RLGSRPO,
            RLGLoadImages,
            RLGCombineRewards,
            RLGAxis,
            RLGLoraAxis,
        ]
