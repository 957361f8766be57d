"""Whatever ends an iteration, wherever: the base model, the trainer and the host are as they were before it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.quant_ops
import comfy.sd
import pytest
import torch
import training_tasks as tasks
from safetensors.torch import load_file, save_file

from pairs import task

PLACES = 18
"""Of each method; `--times` multiplies them."""


class Stop(BaseException):
    """As the host's InterruptProcessingException: no Exception."""


@pytest.fixture(scope="module")
def loaded(models_dir: Path) -> tuple[Any, Any]:
    return tasks.load(tasks.tiny_checkpoint(models_dir, "leaks"))


def _methods(training: SimpleNamespace) -> dict[str, Any]:
    of, small = training.presets, {"steps": 4, "groups": 1}
    return {
        "Flow-GRPO": replace(of.FLOW_GRPO, **small, group_size=2, cfg=2.0),
        "B²-DiffuRL": replace(of.B2_DIFFU_RL, **small, group_size=3, cfg=2.0, tail=(3, 4)),
        "DiffusionNFT": replace(of.DIFFUSION_NFT, **small, group_size=2, trained_steps=2),
        "ImageReFL": replace(of.IMAGE_REFL, **small, first_step=2, last_step=3, image_step=1),
        "SRPO": replace(of.SRPO, **small),
    }


class _Countdown:
    """Raises at a call of any module of a model, in the forward pass or when a block is computed again."""

    def __init__(self, model: torch.nn.Module, calls: int | None) -> None:
        self.calls, self._left = 0, calls
        self._handles = [module.register_forward_pre_hook(self._count) for module in model.modules()]

    def _count(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self._left:
            raise Stop

    def __enter__(self) -> _Countdown:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("name", ["Flow-GRPO", "B²-DiffuRL", "DiffusionNFT", "ImageReFL", "SRPO"])
def test_an_error_anywhere_leaves_no_trace(training, loaded, run_node, name, times) -> None:
    """At least 200 places with `--times 3`."""
    model, vae = loaded
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    of = training.task.Task(model, vae, tasks.prompts_of(training, 2), tasks.Redness(), tasks.SIDE, tasks.SIDE, images)
    trainer = training.trainer.Trainer(of, _methods(training)[name], training.trainer.Settings(rank=2, batch_size=2))
    network = model.model.diffusion_model

    def picture() -> torch.Tensor:
        return run_node("KSampler", model=model, **task(steps=2))[0]["samples"]

    before, weights = picture(), {n: (id(w), w.requires_grad) for n, w in model.model.named_parameters()}
    with _Countdown(network, None) as counted:
        next(iter(trainer.iterate(1)))
    state = {n: t.clone() for n, t in trainer._tensors().items()}
    flag = getattr(comfy.model_management, "in_training", None)
    for place in random.Random(name).sample(range(1, counted.calls + 1), min(PLACES * times, counted.calls)):
        with _Countdown(network, place), pytest.raises(Stop):
            next(iter(trainer.iterate(2)))
        assert all(torch.equal(t, trainer._tensors()[n]) for n, t in state.items()), place
        assert trainer._tensors().keys() == state.keys() and len(trainer.history) == 1
        assert not any("forward" in module.__dict__ for module in model.model.modules()), place
        assert {n: (id(w), w.requires_grad) for n, w in model.model.named_parameters()} == weights, place
        assert all(w.grad is None for w in [*model.model.parameters(), *trainer.policy.parameters.values()]), place
        assert torch.is_inference_mode_enabled() and getattr(comfy.model_management, "in_training", None) == flag
    assert torch.equal(picture(), before)


@pytest.mark.parametrize("layout", ["AsymW4A8Int8Layout", "TensorCoreConvRotW4A4Layout"])
def test_weights_without_gradients_are_refused(training, loaded, layout) -> None:
    """Before anything is computed: the host's kernels for these have no backward pass."""
    pytest.importorskip("comfy_kitchen", reason="this ComfyUI has scaled float8 alone")
    quantised = comfy.quant_ops.QuantizedTensor.from_float(torch.randn(64, 64), layout, convrot_groupsize=64)
    model, vae = loaded
    module = model.model.diffusion_model.joint_blocks[0].x_block.attn.proj
    kept = module.weight
    module.weight = torch.nn.Parameter(quantised, requires_grad=False)
    try:
        of = training.task.Task(model, vae, tasks.prompts_of(training, 1), tasks.Redness(), tasks.SIDE, tasks.SIDE)
        with pytest.raises(ValueError, match=rf"^model: .*attn\.proj\.weight is stored as {layout}, .*\.$"):
            training.trainer.Trainer(of, training.presets.FLOW_GRPO, training.trainer.Settings())
    finally:
        module.weight = kept


def test_weights_in_eight_bits_are_trained_on_as_they_are(training, models_dir) -> None:
    """The base stays in float8; the LoRA's gradient is that on the same numbers in float32."""
    path = tasks.tiny_checkpoint(models_dir, "eight-bits")
    _, vae = tasks.load(path)
    weights = {k: w for k, w in load_file(path).items() if k.startswith("model.diffusion_model.")}
    rounded = {k: w.to(torch.float8_e4m3fn).float() for k, w in weights.items()}
    file = models_dir / "checkpoints" / "rounded.safetensors"
    save_file(rounded, file)
    gradients, dtypes = [], []
    for dtype in (torch.float8_e4m3fn, torch.float32):
        with torch.inference_mode():
            model = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": dtype})
        of = training.task.Task(model, vae, tasks.prompts_of(training, 1), tasks.Redness(), tasks.SIDE, tasks.SIDE)
        method = replace(training.presets.REFL, steps=4, first_step=2, last_step=2, groups=1, reward_weight=1.0)
        trainer = training.trainer.Trainer(of, method, training.trainer.Settings(rank=2))
        seen: dict[str, torch.Tensor] = {}
        parameters = trainer.policy.parameters
        trainer._step = lambda p=parameters, s=seen: s.update({n: q.grad.clone() for n, q in p.items()}) or 0.0
        next(iter(trainer.iterate(1)))
        gradients.append(seen)
        dtypes.append({w.dtype for n, w in model.model.named_parameters() if n.endswith("attn.qkv.weight")})
    assert dtypes == [{torch.float8_e4m3fn}, {torch.float32}]
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).abs().max() <= 1e-3 * gradient.abs().max(), name
