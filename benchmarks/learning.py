"""What each training method learns on the demo's base model: reward and diversity before and after, and in between.

A method trains for some minutes. Then the base and the LoRA, at several scales, draw held-out prompts from the same
noise. Results are written to benchmarks/results/learning.json and .md after each method, beside those of earlier runs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo.scenes import SIDE, Prompt, draw, prompts
from demo.tiny_encoders import LATENT_CHANNELS
from demo.train.lora import DemoReward, load
from demo.trained_pair import checkpoint
from evaluation.host import Extension
from evaluation.summary import aligned
from rewards.curve import Curve, curve
from rewards.pixels import pixel_distances, to_bytes, to_image

from .machine import RESULTS, record

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
STEPS = 8
TRAINED_PROMPTS, HELD_OUT, SEEDS = 32, 24, 2
LATENT_SIDE = SIDE // 8
_INTRODUCTION = f"""# What the training methods learn on the demo's base model

`python dev.py bench --learning`: {STEPS} steps without CFG, rank 16, {TRAINED_PROMPTS} prompts to train on; then
{HELD_OUT} held-out prompts × {SEEDS} noises at each scale, the same for all. Minutes are those of one CPU core.
Intervals are of 95 %, over prompts, of differences to the base with the same noise."""


class Smoothness:
    """Minus the mean difference of neighbouring pixels, in percent: what compressibility asks for, with a gradient.

    A prompt with the word "rough" before it asks for the opposite: SRPO compares pictures under two words.
    """

    name, unit, range, source = "smoothness", "%", (-100.0, 100.0), "benchmarks/learning.py"

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`."""
        return self.gradient_score(to_image(to_bytes(images)), prompts)

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.gradient_score`."""
        across, down = images.diff(dim=2).abs(), images.diff(dim=1).abs()
        asked = images.new_tensor([-1.0 if prompt.startswith("rough.") else 1.0 for prompt in prompts])
        return -50.0 * asked * (across.mean(dim=(1, 2, 3)) + down.mean(dim=(1, 2, 3)))


@dataclass(frozen=True)
class Trial:
    """A method with the settings that suit a small model.

    Attributes:
        reward: a reward of the demo, or "smoothness".
        method: made of the module `training.methods.presets`.
        from_images: whether it is given drawn scenes of its prompts.
    """

    reward: str
    minutes: float
    method: Callable[[Any], Any]
    from_images: bool = False
    learning_rate: float = 1e-3


_POLICY = {"steps": STEPS, "cfg": 1.0, "noise_level": 0.7, "groups": 4, "group_size": 8, "through_negative": False}
_POLICY |= {"trained_steps": 4, "clip_range": 1e-3}
_REWARD = {"steps": STEPS, "first_step": 5, "last_step": 7, "groups": 8, "reward_weight": 1.0}
TRIALS = {
    "Flow-GRPO": Trial("compressibility", 12, lambda m: replace(m.FLOW_GRPO, **_POLICY), learning_rate=3e-3),
    "DDPO": Trial("compressibility", 3, lambda m: replace(m.DDPO, **_POLICY), learning_rate=3e-3),
    "B²-DiffuRL": Trial("compressibility", 3, lambda m: replace(
        m.B2_DIFFU_RL, **{**_POLICY, "trained_steps": 0}, tail=(4, 6), stages=20), learning_rate=3e-3),
    "DiffusionNFT": Trial("compressibility", 3, lambda m: replace(
        m.DIFFUSION_NFT, steps=STEPS, groups=4, group_size=8, trained_steps=4, kl_weight=0.0)),
    "ReFL": Trial("smoothness", 1.2, lambda m: replace(m.REFL, **_REWARD)),
    "ImageReFL": Trial("smoothness", 1.2, lambda m: replace(m.IMAGE_REFL, **_REWARD, image_step=4), from_images=True),
    "DRaFT-K": Trial("smoothness", 1.2, lambda m: replace(m.draft_k(2, STEPS), groups=8, reward_weight=1.0)),
    "SRPO": Trial("smoothness", 1.2, lambda m: replace(
        m.SRPO, steps=STEPS, cfg=1.0, groups=8, wanted=("smooth",), unwanted=("rough",), through_negative=False)),
}  # fmt: skip


class Session:
    """The demo's model in a host, and the prompts."""

    def __init__(self, extension: Extension) -> None:
        self._extension, self._loaded = extension, load(checkpoint())
        self._asked, self._held_out = prompts(0, TRAINED_PROMPTS, held_out=False), prompts(7, HELD_OUT, held_out=True)
        encode = extension.module("training.policy.prompts").Prompts.encode
        self._prompts = encode(self._loaded.clip, [prompt.text for prompt in self._asked])
        self._shown = encode(self._loaded.clip, [prompt.text for prompt in self._held_out])

    def outcome(self, name: str, trial: Trial, folder: Path) -> dict[str, Any]:
        """Train, and look at what was learned: a row of `table`, with all points of the curve."""
        trainer, seconds = self._trained(trial)
        path = trainer.save(folder / "lora")
        load_lora = self._extension.module("rlg_sampler.weights.lora_file").load_lora
        tuned, _ = load_lora(self._loaded.model, path, name, 1.0)
        pictures = np.stack([self._pictures(tuned, scale) for scale in SCALES])
        found = self._curve(pictures, self._reward(trial.reward, self._held_out))
        return {
            "method": name, "reward": trial.reward, "iterations": len(trainer.history), "minutes": seconds / 60,
            "points": [asdict(point) for point in found.points],
        }  # fmt: skip

    def _trained(self, trial: Trial) -> tuple[Any, float]:
        module = self._extension.module
        task = module("training.task").Task(
            *(self._loaded.model, self._loaded.vae, self._prompts, self._reward(trial.reward, self._asked), SIDE, SIDE),
            images=_drawn(self._asked) if trial.from_images else None,
        )
        settings = module("training.trainer").Settings(trial.learning_rate, rank=16, batch_size=8)
        trainer = module("training.trainer").Trainer(task, trial.method(module("training.methods.presets")), settings)
        start = time.process_time()
        for entry in trainer.iterate(10**6):
            done = time.process_time() - start
            print(f"  {entry.number}: reward {entry.reward:.4f}, KL {entry.kl:.2g}, {done / 60:.1f} min", flush=True)
            if done > 60 * trial.minutes:
                break
        return trainer, done

    def _reward(self, name: str, asked: Sequence[Prompt]) -> Any:
        return Smoothness() if name == "smoothness" else DemoReward(name, asked)

    def _pictures(self, tuned: Any, scale: float) -> np.ndarray:
        """(prompts, seeds, height, width, 3) uint8."""
        return np.stack([self._of_prompt(tuned, number, scale) for number in range(HELD_OUT)])

    @torch.inference_mode()
    def _of_prompt(self, tuned: Any, number: int, scale: float) -> np.ndarray:
        run = self._extension.run_node
        latent = {"samples": torch.zeros(SEEDS, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)}
        (samples,) = run(
            "RLGKSampler", base=self._loaded.model, tuned=tuned, positive=self._shown.positive[number],
            negative=self._shown.negative, latent_image=latent, seed=1000 + number, steps=STEPS, cfg=1.0,
            sampler_name="euler", scheduler="normal", denoise=1.0, scale=scale,
        )  # fmt: skip
        return to_bytes(run("VAEDecode", samples=samples, vae=self._loaded.vae)[0])

    def _curve(self, pictures: np.ndarray, reward: Any) -> Curve:
        places, rewards, diversity, texts = [], [], [], []
        for scale, of_scale in zip(SCALES, pictures, strict=True):
            for prompt, of_prompt in zip(self._held_out, of_scale, strict=True):
                places += [("", scale, f"seed {seed}") for seed in range(SEEDS)]
                rewards += reward.score(to_image(of_prompt), [prompt.text] * SEEDS).tolist()
                diversity += pixel_distances(of_prompt).tolist()
                texts += [prompt.text] * SEEDS
        return curve("scale", places, rewards, diversity, texts)


def _drawn(asked: Sequence[Prompt]) -> torch.Tensor:
    """A scene of each prompt, IMAGE."""
    rng = np.random.default_rng(3)
    return to_image(np.stack([np.array(draw(prompt, rng)) for prompt in asked]))


def table(outcomes: Sequence[dict[str, Any]]) -> str:
    """A row per method; intervals are of 95 %, over prompts."""
    header = ["method", "reward", "iterations", "minutes", *(f"s = {scale:g}" for scale in SCALES)]
    header += ["s = 1 above the base", "diversity, base", "diversity, s = 1"]
    rows = []
    for of in outcomes:
        base, tuned = (next(p for p in of["points"] if p["x"] == x) for x in (0.0, 1.0))
        gain = tuned["above_base"]
        rows.append([
            of["method"], of["reward"], str(of["iterations"]), f"{of['minutes']:.0f}",
            *(f"{point['reward']['mean']:.3f}" for point in of["points"]),
            f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]",
            f"{base['diversity']['mean']:.3f}", f"{tuned['diversity']['mean']:.3f}",
        ])  # fmt: skip
    return aligned([header, *rows])


def learn(names: Sequence[str], minutes: float | None) -> None:
    """Train with the methods of these names (none: all) and write what came of it.

    Args:
        minutes: of training for each; None = as TRIALS has it.

    Raises:
        SystemExit: there is no method of a name.
    """
    if unknown := set(names) - TRIALS.keys():
        raise SystemExit(f"--method: {', '.join(sorted(unknown))} is not among {', '.join(TRIALS)}.")
    file = RESULTS / "learning.json"
    session = Session(Extension())
    for name in names or TRIALS:
        trial = TRIALS[name] if minutes is None else replace(TRIALS[name], minutes=minutes)
        print(f"{name}, {trial.reward}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            outcome = session.outcome(name, trial, Path(folder))
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known[name] = outcome
        of_all = [known[name] for name in TRIALS if name in known]
        record(file.stem, f"{_INTRODUCTION}\n\n{table(of_all)}", known)
        print(table([outcome]), flush=True)
