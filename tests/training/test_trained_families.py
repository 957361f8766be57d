"""Every family: gradients of the LoRA through the host's model, and files that all loaders read at full strength."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_tasks as tasks
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open

import diffusers_rlg
from demo.tiny_model import TinySD3
from other_families import OTHER_FAMILIES
from pairs import CLOSE, FAMILIES, conds, empty_latent, load_checkpoint, relative, task

NOT_TRAINED = ("CogVideoX", "LTX-Video", "PixelDiT")


def _values(policy: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in policy.parameters.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_matrix(training, name) -> None:
    """In a model made in inference mode, as nodes make it; its weights ask for none and get none."""
    family = FAMILIES[name]
    model = family.load()
    policy = tasks.random_policy(training, model)
    assert all(weight.is_inference() for weight in model.model.diffusion_model.parameters())

    def body(run: Any) -> None:
        x = torch.randn(2, *family.latent, generator=torch.Generator().manual_seed(5)) * run.sigmas[1]
        with torch.enable_grad():
            run.x0(x, 1).square().mean().backward()

    tasks.x0(training, model, policy, family, body)
    without = [n for n, p in policy.parameters.items() if p.grad is None or not p.grad.any()]
    # Text queries and outputs of a last block are read by nobody.
    assert all("add_" in n or "context" in n for n in without), without
    assert all(weight.grad is None for weight in model.model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_finite_differences(training, name, cfg, checkpointing) -> None:
    """With CFG through both of its sides, as most methods train."""
    family = FAMILIES[name]
    model = family.load()
    _check_slope(training, model, tasks.random_policy(training, model), family, cfg, checkpointing)


def _check_slope(training: Any, model: Any, policy: Any, family: Any, cfg: float, checkpointing: bool) -> None:
    """Along the gradient, where it is the gradient's norm."""
    x = torch.randn(1, *family.latent, generator=torch.Generator().manual_seed(6))

    def loss(run: Any) -> torch.Tensor:
        with torch.enable_grad():
            return run.x0(x * run.sigmas[1], 1).square().mean()

    tasks.x0(training, model, policy, family, lambda run: loss(run).backward(), cfg, checkpointing, True)
    parameters = policy.parameters
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}
    norm = float(sum(gradient.square().sum() for gradient in gradients.values()).sqrt())

    def at(distance: float) -> float:
        with policy.with_values({n: p.detach() + distance * gradients[n] / norm for n, p in parameters.items()}):
            return float(tasks.x0(training, model, policy, family, loss, cfg, checkpointing))

    assert (at(1e-2) - at(-1e-2)) / 2e-2 == pytest.approx(norm, rel=0.02)


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_other_families_are_trained_or_refused_before_anything_is_drawn(training, name) -> None:
    """Those that compute in place, or have no attention that we know, are refused in a sentence."""
    family = OTHER_FAMILIES[name]
    model = family.load()
    try:
        policy = tasks.random_policy(training, model)
        with training.gradients.training_mode():
            tasks.host_model(training, model, policy, family, 1.0, False).fit(torch.Size((1, *family.latent)), 1)
    except ValueError as refusal:
        assert str(refusal).startswith("model: ") and "\n" not in str(refusal)
        assert name in NOT_TRAINED
        return
    assert name not in NOT_TRAINED
    _check_slope(training, model, policy, family, cfg=1.0, checkpointing=False)


@pytest.mark.parametrize("name", [name for name in ("Cosmos Predict2", "Anima") if name in OTHER_FAMILIES])
def test_what_steers_an_attention_is_no_part_of_it(training, name) -> None:
    """Layers that scale and shift its input have it in their names."""
    targets = training.targets.attention_projections(OTHER_FAMILIES[name].load())
    assert any(".cross_attn." in target.name for target in targets)
    assert not any("modulation" in target.name for target in targets)


@pytest.mark.parametrize("name", FAMILIES)
def test_files_are_read_at_full_strength(training, run_node, models_dir, name) -> None:
    """By ComfyUI's own loader and by ours: the predictions of the policy that was saved."""
    family = FAMILIES[name]
    base, policy = family.load(), None
    policy = tasks.random_policy(training, base)
    folder = models_dir / "loras" / f"trained-{family.config}"
    training.lora_output.save_lora(policy, _values(policy), folder, base, {})
    expected = tasks.x0(training, base, policy, family)
    nothing = tasks.random_policy(training, base, size=0.0)
    assert relative(tasks.x0(training, base, nothing, family), expected) > 100 * CLOSE
    ours, report = run_node("RLGLoadLora", model=family.load(), lora_name=folder.name, strength=1.0)
    assert "nothing left out" in report
    file = f"{folder.name}/pytorch_lora_weights.safetensors"
    (stock,) = run_node("LoraLoaderModelOnly", model=family.load(), lora_name=file, strength_model=1.0)
    for tuned in (ours, stock):
        assert relative(tasks.x0(training, tuned, nothing, family), expected) < 3 * CLOSE


@pytest.fixture(scope="module")
def sd3(training, models_dir: Path) -> SimpleNamespace:
    """A LoRA on the tiny SD3 model, in its folder."""
    path = tasks.tiny_checkpoint(models_dir, "trained-sd3")
    base = load_checkpoint(path)
    policy = tasks.random_policy(training, base)
    folder = models_dir / "loras" / "trained-sd3"
    with torch.inference_mode():
        training.lora_output.save_lora(policy, _values(policy), folder, base, {"method": "Flow-GRPO"})
    return SimpleNamespace(path=path, folder=folder)


def _text(seed: int) -> diffusers_rlg.Text:
    ((tokens, extra),) = conds(seed)
    return diffusers_rlg.Text(tokens, extra["pooled_output"])


def test_peft_and_comfyui_sample_the_same_from_the_files(sd3, run_node) -> None:
    peft = diffusers_rlg.load(sd3.path, sd3.folder, TinySD3())
    inputs = task(latent_image=empty_latent(), steps=4)
    noise = torch.randn(1, 16, 16, 16, generator=torch.manual_seed(inputs["seed"]))
    expected = diffusers_rlg.sample(peft, noise, _text(1), _text(2), steps=4, cfg=inputs["cfg"], scale=1.0)
    (ours, _) = run_node("RLGLoadLora", model=load_checkpoint(sd3.path), lora_name=sd3.folder.name, strength=1.0)
    models = [ours]
    for file in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
        name = f"{sd3.folder.name}/{file}"
        models += run_node("LoraLoaderModelOnly", model=load_checkpoint(sd3.path), lora_name=name, strength_model=1.0)
    for model in models:
        assert relative(run_node("KSampler", model=model, **inputs)[0]["samples"], expected) < 1e-5 * 10


def test_diffusers_pipelines_read_the_folder(sd3) -> None:
    with torch.inference_mode(False), torch.no_grad():
        peft = diffusers_rlg.load(sd3.path, sd3.folder, TinySD3())
        with_peft = _velocity(peft)
        with peft.disable_adapter():
            without = _velocity(peft)
        plain = diffusers_rlg.load(sd3.path, sd3.folder, TinySD3()).unload()
        state = StableDiffusion3Pipeline.lora_state_dict(str(sd3.folder), local_files_only=True)
        StableDiffusion3Pipeline.load_lora_into_transformer(state, plain)
        assert relative(_velocity(plain), with_peft) < CLOSE
        assert relative(without, with_peft) > 100 * CLOSE


def _velocity(model: Any) -> torch.Tensor:
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    return diffusers_rlg.velocity(model, noise, torch.tensor(500.0), _text(2), _text(1))


def test_the_files_say_how_they_were_made(sd3) -> None:
    for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
        with safe_open(sd3.folder / name, "pt") as file:
            assert file.metadata()["method"] == "Flow-GRPO"
    config = json.loads((sd3.folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == tasks.RANK


def test_a_digest_tells_base_models_apart(training, run_node, sd3) -> None:
    """Loaded or not, and whatever was sampled; another LoRA below is another base."""
    digest, base = training.weights_digest.weights_digest, load_checkpoint(sd3.path)
    first = digest(base)
    (tuned, _) = run_node("RLGLoadLora", model=base, lora_name=sd3.folder.name, strength=1.0)
    (weaker, _) = run_node("RLGLoadLora", model=base, lora_name=sd3.folder.name, strength=0.5)
    assert len({first, digest(tuned), digest(weaker)}) == 3
    run_node("KSampler", model=tuned, **task(steps=1))
    (shifted,) = run_node("ModelSamplingSD3", model=base, shift=6.0)
    run_node("KSampler", model=shifted, **task(steps=1))  # the patch is in the loaded model now
    assert digest(base) == digest(shifted) == first == digest(load_checkpoint(sd3.path))
    assert digest(FAMILIES["Flux"].load(0)) != digest(FAMILIES["Flux"].load(1))
