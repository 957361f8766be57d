"""Every way to the same mix gives the same latents, and they are those of two separate stock models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import pytest
import torch

from pairs import CLOSE, as_single_file, load_checkpoint, relative, task, write_lora, write_model
from stock_guiders import two_models


@pytest.fixture(scope="module")
def files(models_dir: Path) -> SimpleNamespace:
    folder = write_lora(models_dir, "flow-grpo")
    style = write_lora(models_dir, "style", seed=5, init_scale=0.1)
    return SimpleNamespace(
        checkpoint=write_model(models_dir, "tiny"),
        lora=folder.name,
        single=as_single_file(folder, models_dir / "loras" / "single.safetensors").name,
        style=as_single_file(style, models_dir / "loras" / "style.safetensors").name,
    )


@pytest.fixture(scope="module")
def base(files: SimpleNamespace) -> Any:
    return load_checkpoint(files.checkpoint)


@pytest.fixture(scope="module")
def other(files: SimpleNamespace) -> Any:
    """The same checkpoint as a second set of weights."""
    return load_checkpoint(files.checkpoint)


@pytest.fixture
def tune(run_node: Callable, files: SimpleNamespace) -> Callable[..., Any]:
    return lambda model, strength=1.0: run_node("RLGLoadLora", model=model, lora_name=files.lora, strength=strength)[0]


@pytest.fixture
def sample(run_node: Callable) -> Callable[..., torch.Tensor]:
    def run(node_id: str = "RLGKSampler", **inputs: Any) -> torch.Tensor:
        return run_node(node_id, **inputs)[0]["samples"]

    return run


@pytest.fixture
def in_one_batch(rlg: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Force both branches into one model call, or one after another."""

    def force(together: bool) -> None:
        limit = float("inf") if together else -1
        monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", limit)

    return force


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two passes"])
@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.0, 1.6, 3.0])
def test_shared_weights_equal_two_stock_models(base, other, tune, sample, in_one_batch, scale, together):
    in_one_batch(together)
    ours = sample(base=base, tuned=tune(base), scale=scale, **task(batch=2))
    assert relative(ours, two_models(base, tune(other), scale, **task(batch=2))) < CLOSE


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.6])
def test_two_checkpoints_equal_two_stock_models(base, other, tune, sample, scale):
    ours = sample(base=base, tuned=tune(other), scale=scale, **task())
    assert relative(ours, two_models(base, tune(other), scale, **task())) < CLOSE


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two passes"])
@pytest.mark.parametrize(("cfg", "tuned_cfg"), [(4.5, 1.0), (1.0, 4.5), (1.0, None), (7.5, 2.0)])
def test_each_branch_has_its_own_cfg(base, other, tune, sample, in_one_batch, cfg, tuned_cfg, together):
    in_one_batch(together)
    inputs = task(cfg=cfg, tuned_cfg=tuned_cfg)
    ours = sample(base=base, tuned=tune(base), scale=1.6, **inputs)
    assert relative(ours, two_models(base, tune(other), 1.6, **inputs)) < CLOSE


@pytest.mark.parametrize("sampler_name", ["heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde"])
def test_other_samplers(base, other, tune, sample, sampler_name):
    # This schedule stays away from the tiny last sigma of `normal`, where heun magnifies rounding.
    inputs = task(sampler_name=sampler_name, scheduler="sgm_uniform")
    ours = sample(base=base, tuned=tune(base), scale=1.6, **inputs)
    assert relative(ours, two_models(base, tune(other), 1.6, **inputs)) < CLOSE


def test_three_nodes_one_result(base, tune, sample, run_node):
    tuned, inputs = tune(base), task()
    by_sampler = sample(base=base, tuned=tuned, scale=1.6, **inputs)
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    assert torch.equal(sample("KSampler", model=model, **inputs), by_sampler)
    pair = {k: inputs[k] for k in ("positive", "negative", "cfg")}
    (guider,) = run_node("RLGGuider", base=base, tuned=tuned, scale=1.6, **pair)
    by_guider, _ = run_node(
        "SamplerCustomAdvanced",
        noise=run_node("RandomNoise", noise_seed=inputs["seed"])[0],
        guider=guider,
        sampler=run_node("KSamplerSelect", sampler_name="euler")[0],
        sigmas=run_node("BasicScheduler", model=base, scheduler="normal", steps=inputs["steps"], denoise=1.0)[0],
        latent_image=inputs["latent_image"],
    )
    assert torch.equal(by_guider["samples"], by_sampler)


def test_scale_0_is_the_base_exactly(base, tune, sample):
    ours = sample(base=base, tuned=tune(base), scale=0.0, **task())
    assert torch.equal(ours, sample("KSampler", model=base, **task()))


def test_scale_1_is_the_tuned_model(base, tune, sample):
    tuned = tune(base)
    stock = sample("KSampler", model=tuned, **task())
    assert relative(sample(base=base, tuned=tuned, scale=1.0, **task()), stock) < CLOSE
    assert relative(sample("KSampler", model=base, **task()), stock) > 0.05  # the two are far apart


@pytest.mark.parametrize("strength", [0.5, -1.0, 1.7])
def test_lora_strength_and_sign(base, other, tune, sample, strength):
    ours = sample(base=base, tuned=tune(base, strength), scale=1.6, **task())
    assert relative(ours, two_models(base, tune(other, strength), 1.6, **task())) < CLOSE


def test_stock_lora_loader(base, other, sample, run_node, files):
    def load(model: Any) -> Any:
        return run_node("LoraLoaderModelOnly", model=model, lora_name=files.single, strength_model=0.8)[0]

    ours = sample(base=base, tuned=load(base), scale=1.6, **task())
    assert relative(ours, two_models(base, load(other), 1.6, **task())) < CLOSE


def test_lora_common_to_both_stays_merged(base, other, tune, sample, run_node, files, rlg):
    def style(model: Any) -> Any:
        return run_node("LoraLoaderModelOnly", model=model, lora_name=files.style, strength_model=1.0)[0]

    styled = style(base)
    ours = sample(base=styled, tuned=tune(styled), scale=1.6, **task())
    assert relative(ours, two_models(style(base), tune(style(other)), 1.6, **task())) < CLOSE
    # The style is no part of the difference: its rank would double the deltas.
    pair = rlg.module("rlg_sampler.weights.pair").ModelPair.from_models(styled, tune(styled))
    assert {len(change.terms) for change in pair.changes.values()} <= {1, 3}  # out-projections 1, fused qkv 3


@pytest.mark.parametrize("after", [False, True], ids=["before the RL LoRA", "after it"])
def test_common_lora_loaded_twice_cancels(base, other, tune, sample, run_node, files, rlg, caplog, after):
    """Two loader nodes read the same style file: other tensors, the same weights. So nothing is to be warned of."""

    def style(model: Any) -> Any:
        return run_node("LoraLoaderModelOnly", model=model, lora_name=files.style, strength_model=1.0)[0]

    def both(model: Any) -> Any:
        return style(tune(model)) if after else tune(style(model))

    ours = sample(base=style(base), tuned=both(base), scale=1.6, **task())
    assert "higher scale" not in caplog.text  # takes nothing away
    assert relative(ours, two_models(style(base), both(other), 1.6, **task())) < CLOSE
    pair = rlg.module("rlg_sampler.weights.pair").ModelPair.from_models(style(base), both(base))
    assert {len(change.terms) for change in pair.changes.values()} <= {1, 3}  # the RL LoRA's alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_patches_are_equal_by_their_numbers(base, rlg, dtype):
    """And no others, also where PyTorch does not compare a dtype."""
    module, weight = (
        rlg.module("rlg_sampler.weights.patch_difference"),
        "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
    )

    def patches(value: float) -> Any:
        patched = base.clone()
        patched.add_patches({weight: (torch.full(base.model.state_dict()[weight].shape, value).to(dtype),)}, 1.0)
        return patched.patches

    assert module.patch_difference(patches(0.5), patches(0.5)) == {}
    assert module.patch_difference(patches(0.5), patches(0.25)).keys() == {weight}


def test_a_patch_of_a_weight_that_cannot_be_changed_may_be_on_both(base, other, tune, sample):
    """As norms in LoRAs that make a model faster."""
    weights = base.model.state_dict()
    name = next(n for n in weights if n.startswith("diffusion_model.") and n.endswith("ln_q.weight"))

    def style(model: Any, by: float = 0.5) -> Any:
        styled = model.clone()
        styled.add_patches({name: (torch.full_like(weights[name], by),)}, 1.0)
        return styled

    ours = sample(base=style(base), tuned=tune(style(base)), scale=1.6, **task())
    assert relative(ours, two_models(style(base), tune(style(other)), 1.6, **task())) < CLOSE
    with pytest.raises(ValueError, match=r"ln_q\.weight, which cannot be changed on the fly"):
        sample(base=style(base), tuned=tune(style(base, 0.25)), scale=1.6, **task())


def test_equal_full_differences_from_two_loader_nodes_cancel(base, other, tune, sample):
    """The patches of two loader nodes hold tensors of their own, which have to be told apart without comparing them."""
    weight = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    noise = torch.randn(base.model.state_dict()[weight].shape, generator=torch.Generator().manual_seed(3)) * 0.05

    def style(model: Any) -> Any:
        styled = model.clone()
        styled.add_patches({weight: (noise.clone(),)}, 1.0)
        return styled

    ours = sample(base=style(base), tuned=tune(style(base)), scale=1.6, **task())
    assert relative(ours, two_models(style(base), tune(style(other)), 1.6, **task())) < CLOSE


def test_lora_on_the_base_alone(base, other, tune, sample, run_node, files):
    (styled,) = run_node("LoraLoaderModelOnly", model=base, lora_name=files.style, strength_model=1.0)
    ours = sample(base=styled, tuned=tune(base), scale=1.6, **task())
    assert relative(ours, two_models(styled, tune(other), 1.6, **task())) < CLOSE


def test_stacked_loras(base, other, tune, sample, run_node, files):
    def stack(model: Any) -> Any:
        tuned = tune(tune(model), -0.3)
        return run_node("LoraLoaderModelOnly", model=tuned, lora_name=files.style, strength_model=0.5)[0]

    ours = sample(base=base, tuned=stack(base), scale=1.6, **task())
    assert relative(ours, two_models(base, stack(other), 1.6, **task())) < CLOSE


def test_lora_added_after_rlg_model_acts_on_both(base, other, tune, sample, run_node, files):
    def style(model: Any) -> Any:
        return run_node("LoraLoaderModelOnly", model=model, lora_name=files.style, strength_model=1.0)[0]

    (model,) = run_node("RLGModel", base=base, tuned=tune(base), scale=1.6)
    ours = sample("KSampler", model=style(model), **task())
    assert relative(ours, two_models(style(base), style(tune(other)), 1.6, **task())) < CLOSE


@pytest.mark.parametrize("kind", ["full difference", "set", "DoRA", "scaled weight", "bias"])
def test_patches_that_are_not_low_rank(base, other, tune, sample, kind):
    weight = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    shape = base.model.state_dict()[weight].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.05

    def patch(model: Any) -> Any:
        tuned = tune(model)
        if kind == "DoRA":
            lora = tuned.patches[weight][0][1]
            dora = type(lora)(lora.loaded_keys, (torch.randn(shape[0], 4) * 0.1, torch.randn(4, shape[1]) * 0.1,
                                                 4.0, None, torch.ones(shape[0], 1), None))  # fmt: skip
            tuned.add_patches({weight: dora}, 0.7)
        elif kind == "bias":
            tuned.add_patches({weight.replace(".weight", ".bias"): (noise[:, 0].clone(),)}, 0.7)
        elif kind == "scaled weight":
            tuned.add_patches({weight: (noise,)}, 0.7, 0.9)
        else:
            tuned.add_patches({weight: ("set", (noise,)) if kind == "set" else (noise,)}, 0.7)
        return tuned

    torch.manual_seed(0)
    on_base = patch(base)
    torch.manual_seed(0)
    ours = sample(base=base, tuned=on_base, scale=1.6, **task())
    torch.manual_seed(0)
    assert relative(ours, two_models(base, patch(other), 1.6, **task())) < CLOSE


def test_chained_models_are_each_compared_with_the_first_base(base, other, tune, sample, run_node):
    first, second = tune(base), tune(base, -0.5)
    (model,) = run_node("RLGModel", base=base, tuned=first, scale=0.7)
    (model,) = run_node("RLGModel", base=model, tuned=second, scale=1.2)
    ours = sample("KSampler", model=model, **task(steps=1))
    x0 = [sample("KSampler", model=m, **task(steps=1)) for m in (base, first, second)]  # one step to 0 gives x0
    assert relative(ours, x0[0] + 0.7 * (x0[1] - x0[0]) + 1.2 * (x0[2] - x0[0])) < CLOSE


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two passes"])
def test_samplers_that_look_into_cfg_see_the_guided_predictions(base, tune, sample, in_one_batch, together):
    """CFG++ (arXiv 2406.08070) steps along the unconditional prediction, which then must be the mixed one."""
    in_one_batch(together)
    calls: list[dict] = []

    def note(args: dict) -> torch.Tensor:
        calls.append(args)
        return args["denoised"]

    spied = base.clone()
    spied.set_model_sampler_post_cfg_function(note)
    inputs = task(sampler_name="euler_cfg_pp", steps=4, cfg=1.7)
    sample(base=spied, tuned=tune(spied), scale=1.6, **inputs)
    sigma, sigma_next = comfy.samplers.KSampler(base, 4, "cpu", "euler", "normal").sigmas[1:3]
    of_base, of_tuned, of_base_next = calls[2], calls[3], calls[4]  # the second step, and the third's start

    def mixed(part: str) -> torch.Tensor:
        return of_base[part] + 1.6 * (of_tuned[part] - of_base[part])

    to_noise = (of_base["input"] - (1 - sigma) * mixed("uncond_denoised")) / sigma
    expected = (1 - sigma_next) * mixed("denoised") + sigma_next * to_noise
    assert relative(of_base_next["input"], expected) < CLOSE
    assert relative(of_base["uncond_denoised"], mixed("uncond_denoised")) > 1e-3  # else this shows nothing
