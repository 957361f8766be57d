"""The host's MODEL as training sees it: latents and a prompt in, x0 out, with or without gradients.

All calls go through the host's own guider: it loads the model, prepares conds, runs other packs' patches and wrappers,
computes CFG and cleans up. `run` takes the place of a sampler in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.model_management
import comfy.samplers
import torch

from ...rlg_sampler.messages import model_name
from .activations import Kept, in_sentence, kept_for_backward
from .blocks import differentiable_blocks
from .gradient_scale import GradientScale
from .gradients import attention_options, frozen, streamed
from .prompts import Prompts
from .trainable_lora import Policy

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Result = TypeVar("Result")

_OF_CFG = ("sampler_pre_cfg_function", "sampler_post_cfg_function", "sampler_cfg_function")
_OF_BLOCKS = ("patches", "patches_replace")
"""Options of a MODEL, and of its transformer, under which patches lie that may keep something of one side of CFG."""


_OF_THE_MACHINE = ("memory", "alloc_failed", "cuda error", "hip error", "miopen", "ur_result_error", "level_zero")
"""In errors that say nothing about a model."""


@dataclass(frozen=True)
class Prediction:
    """Of the model for some latents; all (rows, channels, ...) float32.

    Attributes:
        x0: after CFG.
        positive: x0 for the prompt alone.
        negative: x0 for the negative prompt; zeros where cfg 1 leaves it out.
    """

    x0: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor


@dataclass(frozen=True)
class Run:
    """A loaded model with the conds of one prompt; made by `HostModel.run`.

    Attributes:
        sigmas: σ_0 … σ_n on the model's device.
        sampling: the host's `model_sampling`.
        device: of the model.
    """

    sigmas: torch.Tensor
    sampling: Any
    device: torch.device
    _predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Prediction]

    def x0(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """The policy's prediction for latents x at σ_index, after CFG; float32."""
        return self.predict(x, index).x0

    def predict(self, x: torch.Tensor, index: int, negative: torch.Tensor | None = None) -> Prediction:
        """The same with CFG's other side.

        Args:
            negative: what the present policy predicts for the negative prompt, where that is known or not wanted; not
                used where a patch (such as SAG) may want to see how it is computed.
        """
        return self._predict(x, self.sigmas[index].expand(len(x)), negative)

    def start(self, noise: torch.Tensor, latents: torch.Tensor | None = None, index: int = 0) -> torch.Tensor:
        """Latents at σ_index: noise alone, or `latents` (as the model sees them) with that much noise."""
        clean = torch.zeros_like(noise) if latents is None else latents
        return self.sampling.noise_scaling(self.sigmas[index], noise, clean, latents is None)

    def euler(self, x: torch.Tensor, index: int, to: int) -> torch.Tensor:
        """Latents x at σ_index after Euler's step to σ_to."""
        x0 = self.x0(x, index)
        return x0 + (x - x0) * (self.sigmas[to] / self.sigmas[index])

    def sampled(self, noise: torch.Tensor) -> torch.Tensor:
        """The latents that Euler's method makes of noise, which is on any device."""
        x = self.start(noise.to(self.device))
        for index in range(len(self.sigmas) - 1):
            x = self.euler(x, index, index + 1)
        return x


class HostModel:
    """A MODEL and the policy on it.

    Args:
        patcher: the MODEL; left as it is.
        policy: trained on it.
        prompts: to train on.
        cfg: text guidance; 1 leaves the negative prompt out.
        sigmas: σ_0 … σ_n of sampling.
        checkpointing: save memory in backward passes, for one more forward pass; None is as False until `fit` decides.
        through_negative: whether gradients pass through CFG's other side too.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        policy: Policy,
        prompts: Prompts,
        cfg: float,
        sigmas: torch.Tensor,
        checkpointing: bool | None,
        through_negative: bool = False,
    ) -> None:
        self.policy = policy
        self._patcher, self._prompts, self._cfg, self._sigmas = patcher, prompts, cfg, sigmas
        self._wanted, self._checkpointing = checkpointing, bool(checkpointing)
        self._through_negative = through_negative
        self._room = 0
        """Bytes that a backward pass keeps, once that was looked at."""

    def on(self, prompts: Prompts) -> HostModel:
        """The same on other prompts."""
        other = copy.copy(self)
        other._prompts = prompts
        return other

    def fit(self, shape: torch.Size, predictions: int) -> str:
        """Decide on checkpointing, if that was left open, by what a backward pass would keep and what is free.

        Then make a small one, so that a model that has none is known before the first picture.

        Args:
            shape: of the latents, with all rows that a call will have.
            predictions: so many have a gradient at once.

        Returns:
            What was found, as a sentence; "" where nothing was left open.

        Raises:
            ValueError: no gradient passes through the model.
        """
        one, rows, found = torch.Size((1, *shape[1:])), predictions * shape[0], ""
        if self._wanted is None:
            self._checkpointing = False
            kept, free = self.run(0, one, lambda run: self._kept(run, one, rows))
            self._checkpointing = rows * kept.whole > free
            self._room = rows * (kept.checkpointed if self._checkpointing else kept.whole)
            found = in_sentence(kept, rows, free)
        self.run(0, one, lambda run: self._try_backward(run, one))
        return found

    def run(
        self, prompt: int, shape: torch.Size, body: Callable[[Run], Result], sigmas: torch.Tensor | None = None
    ) -> Result:
        """Call `body` while the model is loaded, and return what it does.

        Args:
            prompt: its number.
            shape: of the latents, with all rows that a call will have.
            body: its calls of the model follow the policy, and have gradients where it enables them.
            sigmas: falling ones in place of those of sampling.
        """
        sigmas = self._sigmas if sigmas is None else sigmas
        guider = comfy.samplers.CFGGuider(self._patcher)
        guider.set_conds(self._prompts.positive[prompt], self._prompts.negative)
        guider.set_cfg(self._cfg)
        sampler = _Body(lambda run: self._attached(guider, run, body), self.policy, self._through_negative)
        guider.sample(torch.zeros(shape), torch.zeros(shape), sampler, sigmas, disable_pbar=True, seed=0)
        return sampler.result

    def _attached(self, guider: comfy.samplers.CFGGuider, run: Run, body: Callable[[Run], Result]) -> Result:
        model = guider.inner_model
        with ExitStack() as stack:
            stack.enter_context(frozen(model))
            stack.enter_context(streamed(guider.model_patcher, casts=not self._checkpointing))
            stack.enter_context(self.policy.attached(model))
            stack.enter_context(differentiable_blocks(model.diffusion_model, self._checkpointing))
            if self._room:
                self._make_room(self._room)
            return body(run)

    def _kept(self, run: Run, shape: torch.Size, rows: int) -> tuple[Kept, int]:
        """What the backward pass of one picture keeps, and the bytes that are free for that of so many."""
        x = run.start(torch.zeros(shape, device=run.device))
        model = self._patcher.model
        with torch.enable_grad():
            kept = kept_for_backward(model.diffusion_model, lambda: run.x0(x, 0))
        self._make_room(rows * kept.whole)
        return kept, max(self._free(run.device) - self._reserve, 0)

    def _try_backward(self, run: Run, shape: torch.Size) -> None:
        """Raises ValueError: the model's parts have no gradient, or none that comes to the LoRA."""
        parameters = self.policy.parameters.values()
        with torch.enable_grad():
            end = run.x0(run.start(torch.zeros(shape, device=run.device)), 0).sum()
        try:
            end.backward()
            arrived = any(parameter.grad is not None for parameter in parameters)
        except RuntimeError as error:
            if any(word in str(error).lower() for word in _OF_THE_MACHINE):
                raise
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ValueError(
                f"model: no gradient passes through {model_name(self._patcher)} in this ComfyUI ({reason}); train "
                "another model, or with another version of ComfyUI."
            ) from error
        finally:
            for parameter in parameters:
                parameter.grad = None
        if not arrived:
            raise ValueError(
                f"model: the LoRA's layers have no part in what {model_name(self._patcher)} computes; train another "
                "model."
            )

    def _free(self, device: torch.device) -> int:
        """Bytes, with those of weights that newer hosts keep on the device only as long as nothing else needs them."""
        of_patcher = getattr(self._patcher, "get_free_memory", comfy.model_management.get_free_memory)
        return of_patcher(device)

    @property
    def _reserve(self) -> int:
        """Bytes that are needed besides what a backward pass keeps."""
        # The gradients of the LoRA and AdamW's two averages of them are not there from the beginning.
        of_training = 3 * sum(parameter.nbytes for parameter in self.policy.parameters.values())
        return comfy.model_management.minimum_inference_memory() + of_training

    def _make_room(self, size: int) -> None:
        """Have text encoders, rewards and other models leave, as far as a backward pass that keeps so much needs it.

        The host, which knows of no backward pass, makes room for sampling alone.
        """
        needed, device = size + self._reserve, self._patcher.load_device
        on_cpu = comfy.model_management.is_device_cpu(device)
        if not on_cpu and self._free(device) < needed:
            beside = *self._patcher.get_nested_additional_models(), *self._patcher.model_patches_models()
            needed_here = {id(patcher.model) for patcher in (self._patcher, *beside)}
            loaded = comfy.model_management.current_loaded_models
            own = [each for each in loaded if each.model is not None and id(each.model.model) in needed_here]
            comfy.model_management.free_memory(needed, device, own)


class _Body(comfy.samplers.Sampler):
    """Stands where a sampler would, so that the host does around it what it does around sampling."""

    def __init__(self, body: Callable[[Run], Any], policy: Policy, through_negative: bool) -> None:
        self._body, self._policy, self._through_negative = body, policy, through_negative
        self._positive: torch.Tensor | None = None
        self._negative: torch.Tensor | None = None
        self.result: Any = None

    def sample(
        self,
        guider: comfy.samplers.CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        options = {**extra_args["model_options"], "sampler_calc_cond_batch_function": self._one_by_one}
        of_model = options.get("transformer_options", {})
        options["transformer_options"] = {**of_model, **attention_options(of_model)}
        patched = any(options.get(name) for name in _OF_CFG) or any(of_model.get(name) for name in _OF_BLOCKS)

        def predict(x: torch.Tensor, sigma: torch.Tensor, negative: torch.Tensor | None) -> Prediction:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self._negative, scale = None if patched else negative, GradientScale(guider.cfg)
            # All calls of it, since a patch such as PAG makes some of its own.
            with self._policy.with_gradients(scale):
                x0 = guider(scale.out_of(x), sigma, model_options=options, seed=extra_args["seed"])
            return Prediction(*scale.into(x0, self._positive), self._negative)

        self.result = self._body(Run(sigmas, guider.inner_model.model_sampling, noise.device, predict))
        return noise

    def _one_by_one(self, call: dict[str, Any]) -> list[torch.Tensor]:
        """Predictions for the prompt and for the other side of CFG, which may be a constant to gradients.

        In rollouts too, so that an update computes what the rollout did, to the last bit.
        """
        positive, negative = call["conds"]
        if negative is None:
            self._negative = torch.zeros_like(call["input"])
        elif self._negative is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._through_negative):
                self._negative = _of([None, negative], call)
        self._positive = _of([positive], call)
        return [self._positive, self._negative]


def _of(conds: list[Any], call: dict[str, Any]) -> torch.Tensor:
    """The prediction for the last of the conds, whose place tells patches which side of CFG it is."""
    rest = call["input"], call["sigma"], call["model_options"]
    return comfy.samplers.calc_cond_batch(call["model"], conds, *rest)[-1]
