"""API prompts for the demo's pair: one text and noise, sampled in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from demo.client import Json
from demo.scenes import SIDE
from demo.trained_pair import CHECKPOINT, LORAS

STEPS, CFG = 12, 1.0


@dataclass(frozen=True)
class Setting:
    """One way to sample, by the inputs of RLG KSampler in which it differs.

    Attributes:
        scale: where no schedule replaces it.
        schedule: id and widgets of a schedule node.
        cfg: of both models, or of the base alone where `tuned_cfg` is given.
        tuned_cfg: of the tuned model.
        strength: of the LoRA.
        name: for people; that of the constant scale where it is empty.
    """

    scale: float = 1.0
    schedule: tuple[str, Json] | None = None
    cfg: float = CFG
    tuned_cfg: float | None = None
    strength: float = 1.0
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"s = {self.scale:g}" + {0.0: " base", 1.0: " tuned"}.get(self.scale, "")


def combined(switch: float, scale: float) -> Setting:
    """Combined generation: the base model, and from the progress `switch` on that scale."""
    widgets = {"switch_percent": switch, "scale": scale}
    return Setting(scale, ("RLGCombinedGeneration", widgets), name=f"base to {switch:g}, then {scale:g}")


def ramp(end: float, power: float) -> Setting:
    """Annealed guidance: from the base model to that scale, later with a higher power."""
    widgets = {"start_scale": 0.0, "end_scale": end, "curve": "power", "power": power}
    return Setting(end, ("RLGRamp", widgets), name=f"0 to {end:g}, power {power:g}")


def strengthened(strength: float) -> Setting:
    """The tuned model alone, with the LoRA at that strength."""
    return Setting(strength=strength, name=f"LoRA's strength {strength:g}")


def node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}


def prompted(clip: list, text: str, batch: int) -> dict[str, Json]:
    """A text, the empty one beside it, and an empty latent. `clip`: node and output."""
    return {
        "positive": node("CLIPTextEncode", clip=clip, text=text),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "latent": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=batch),
    }


def sampler_inputs(seed: int, cfg: float = CFG) -> Json:
    """Those that all samplers have, from the nodes of `prompted`."""
    return {
        "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0], "seed": seed,
        "steps": STEPS, "cfg": cfg, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip


def sweep_prompt(lora: str, settings: Sequence[Setting], text: str, batch: int, seed: int) -> dict[str, Json]:
    """The loader, the text and the noise once, then a sampler for each setting.

    Args:
        lora: one of LORAS.
        batch: pictures of each setting.

    Returns:
        A graph whose node `save<number>` shows the pictures of a setting, and `curve<number>` its schedule.
    """
    graph = {
        "pair": node("RLGLoadModels", ckpt_name=CHECKPOINT, lora_name=LORAS[lora], lora_strength=1.0),
        **prompted(["pair", 2], text, batch),
    }
    for number, setting in enumerate(settings):
        inputs: Json = {
            "base": ["pair", 0], "tuned": ["pair", 1], "scale": setting.scale, **sampler_inputs(seed, setting.cfg),
        }  # fmt: skip
        if setting.schedule is not None:
            kind, widgets = setting.schedule
            graph[f"curve{number}"] = node(kind, **widgets)
            inputs["schedule"] = [f"curve{number}", 0]
        if setting.tuned_cfg is not None:
            graph[f"cfg{number}"] = node("PrimitiveFloat", value=setting.tuned_cfg)
            inputs["tuned_cfg"] = [f"cfg{number}", 0]
        if setting.strength != 1.0:
            graph[f"lora{number}"] = node(
                "RLGLoadLora", model=["pair", 0], lora_name=LORAS[lora], strength=setting.strength
            )
            inputs["tuned"] = [f"lora{number}", 0]
        graph[f"sample{number}"] = node("RLGKSampler", **inputs)
        graph[f"decode{number}"] = node("VAEDecode", samples=[f"sample{number}", 0], vae=["pair", 3])
        graph[f"save{number}"] = node("PreviewImage", images=[f"decode{number}", 0])
    return graph
