"""Patches that a MODEL carries act in training as in sampling, and so do their gradients; others are refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_tasks as tasks
from comfy_api.torch_helpers import set_torch_compile_wrapper

from pairs import FAMILIES, load_checkpoint, with_kv_cache, write_lora


def _gradient(
    training: SimpleNamespace, model: Any, family: Any, cfg: float = 2.0, checkpointing: bool = False, size: float = 1.0
) -> torch.Tensor:
    """Of all matrices of a LoRA, in one row; `size` is that of the loss."""
    policy = tasks.random_policy(training, model)

    def backward(run: Any) -> None:
        x = torch.randn(2, *family.latent, generator=torch.Generator().manual_seed(6)) * run.sigmas[1]
        with torch.enable_grad():
            (size * run.x0(x, 1).square().sum()).backward()

    tasks.x0(training, model, policy, family, backward, cfg, checkpointing)
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters.values()])


def _per_block(model: Any, _: Callable) -> Any:
    """As IP-Adapter's weights of blocks: a patch that asks which block it is in."""
    patched, weights = model.clone(), {"input": 3.0, "middle": 0.2, "output": 1.0}
    patched.set_model_attn2_output_patch(lambda out, extra: out * weights[extra["block"][0]])
    return patched


def _pag(model: Any, run_node: Callable) -> Any:
    return run_node("PerturbedAttentionGuidance", model=model, scale=3.0)[0]


@pytest.mark.parametrize("patch", [_per_block, _pag])
def test_a_block_that_is_computed_again_is_told_which_block_it_is(training, run_node, patch) -> None:
    family = FAMILIES["SDXL"]
    model = patch(family.load(), run_node)
    expected = _gradient(training, model, family)
    torch.testing.assert_close(_gradient(training, model, family, checkpointing=True), expected)
    assert not torch.allclose(_gradient(training, family.load(), family), expected, rtol=0.01)


@pytest.mark.parametrize("cfg", [1.0, 30.0])
@pytest.mark.parametrize("patch", [lambda model, _: model, _pag], ids=["no patch", "PAG"])
def test_gradients_of_small_losses_survive_half_precision(training, run_node, patch, cfg) -> None:
    """Of all calls of the model, also of those that a patch makes: float16 would round them to 0."""
    family, found = FAMILIES["SDXL"], []
    for dtype in (torch.float32, torch.float16):
        model = family.load()
        model.model.diffusion_model.to(dtype)
        model.model.manual_cast_dtype = None
        model.model.diffusion_model.dtype = dtype
        model.model.get_dtype = lambda dtype=dtype: dtype
        found.append(_gradient(training, patch(model, run_node), family, cfg, size=1e-9))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999
    assert found[1].norm() / found[0].norm() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_has_the_gradients_of_the_model(training, backend) -> None:
    torch._dynamo.reset()
    family = FAMILIES["Flux"]
    compiled = family.load().clone()
    set_torch_compile_wrapper(model=compiled, backend=backend)
    expected = _gradient(training, family.load(), family, size=1e-3)
    torch.testing.assert_close(_gradient(training, compiled, family, size=1e-3), expected, rtol=1e-3, atol=1e-9)


def test_patches_are_told_which_side_of_cfg_they_see(training, run_node) -> None:
    """As by a sampler, which computes both at once: 0 is the prompt, 1 the negative prompt."""
    family, seen = FAMILIES["SD1.5"], []
    model = family.load().clone()

    def noted(apply: Callable, arguments: dict[str, Any]) -> torch.Tensor:
        seen.extend(arguments["cond_or_uncond"])
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(noted)
    tasks.x0(training, model, tasks.random_policy(training, model), family)
    assert sorted(seen) == [0, 1]


def test_what_a_patch_keeps_of_one_side_of_cfg_is_that_of_this_prediction(training, run_node) -> None:
    """SAG's map of attention: an update that knows the negative prompt's prediction computes what the rollout did."""
    family = FAMILIES["SD1.5"]
    (model,) = run_node("SelfAttentionGuidance", model=family.load(), scale=0.5, blur_sigma=2.0)

    def predicted(run: Any) -> list[torch.Tensor]:
        x = torch.randn(2, *family.latent, generator=torch.Generator().manual_seed(6)) * run.sigmas[1]
        drawn = run.predict(x, 1)
        run.predict(2 * x, 0)
        return [drawn.x0, run.predict(x, 1, drawn.negative).x0]

    assert torch.equal(*tasks.x0(training, model, tasks.random_policy(training, model), family, predicted))


@pytest.fixture
def task_on(training, models_dir) -> Callable[[Any], Any]:
    path = tasks.tiny_checkpoint(models_dir, "patched")
    _, vae = tasks.load(path)

    def task(patch: Callable[[Any], Any]) -> Any:
        model = patch(load_checkpoint(path))
        prompts = tasks.prompts_of(training, 2)
        return training.task.Task(model, vae, prompts, tasks.Redness(), tasks.SIDE, tasks.SIDE)

    return task


def test_a_guided_model_is_refused(task_on, run_node, models_dir) -> None:
    write_lora(models_dir, "patched")

    def guided(model: Any) -> Any:
        (tuned, _) = run_node("RLGLoadLora", model=model, lora_name="patched", strength=1.0)
        return run_node("RLGModel", base=model, tuned=tuned, scale=1.6)[0]

    with pytest.raises(ValueError, match=r"^model: it is a guided MODEL; connect the base model, as it is before RLG"):
        task_on(guided)


def test_a_model_that_is_split_over_gpus_is_refused(task_on) -> None:
    def split(model: Any) -> Any:
        copy = model.clone()
        copy.set_additional_models("multigpu", [model.clone()])
        return copy

    with pytest.raises(ValueError, match=r"^model: MultiGPU CFG Split computes without gradients; take it out, and"):
        task_on(split)


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        (
            "LazyCache",
            {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
            "model: EasyCache or LazyCache keeps what it has computed",
        ),
        (
            "SkipLayerGuidanceDiTSimple",
            {"double_layers": "0", "single_layers": "0", "start_percent": 0.0, "end_percent": 1.0},
            "model: a patch on it .* computes both sides of CFG in a way of its own",
        ),
    ],
)
def test_patches_that_training_would_leave_out_are_refused(task_on, run_node, node, inputs, words) -> None:
    with pytest.raises(ValueError, match=rf"^{words}.*; take it out\.$"):
        task_on(lambda model: run_node(node, model=model, **inputs)[0])


def test_a_cache_of_reference_pictures_is_refused(task_on) -> None:
    with pytest.raises(
        ValueError, match=r"^model: Flux KV Cache keeps what it has computed from step to step; take it"
    ):
        task_on(with_kv_cache)
