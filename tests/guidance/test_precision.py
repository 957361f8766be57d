"""Base weights of any dtype stay as they are; deltas are added in the dtype the model computes in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.quant_ops
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file, save_file

from pairs import CLOSE, StoredBits, as_single_file, load_checkpoint, relative, task, write_lora
from stock_guiders import two_models


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_low_precision_weights(checkpoint: Path, run_node: Callable, dtype: torch.dtype) -> None:
    """No further from the float32 result than twice what the host's own two models in this dtype are."""

    def load() -> Any:
        return comfy.sd.load_diffusion_model(str(checkpoint), model_options={"dtype": dtype})

    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name="precision", strength=1.0)[0]

    exact = load_checkpoint(checkpoint)
    expected = two_models(exact, tune(load_checkpoint(checkpoint)), 1.6, **task())
    base = load()
    qkv = base.model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    assert qkv.weight.dtype == dtype
    bits = StoredBits(qkv)
    ours = run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, **task())[0]["samples"]
    error = relative(ours, expected)
    merged = relative(two_models(load(), tune(load()), 1.6, **task()), expected)
    assert bits.unchanged and all(bits.unchanged)
    assert error < 2 * merged


def test_loras_of_several_dtypes_on_the_same_weights(base, run_node, models_dir) -> None:
    tuned = base
    for seed, dtype in enumerate((torch.float8_e4m3fn, torch.bfloat16, torch.float16)):
        file = models_dir / "loras" / f"in {dtype}.safetensors"
        as_single_file(write_lora(models_dir, "one_of_several", seed=seed), file)
        weights = {key: w if key.endswith("alpha") else w.to(dtype) for key, w in load_file(file).items()}
        save_file(weights, file)
        tuned = run_node("RLGLoadLora", model=tuned, lora_name=file.name, strength=1.0)[0]
    (ours,) = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.0, **task())
    (merged,) = run_node("KSampler", model=tuned, **task())
    assert relative(ours["samples"], merged["samples"]) < CLOSE


def test_a_compute_dtype_holds_from_the_first_run_on(checkpoint: Path, run_node, rlg, monkeypatch) -> None:
    """ModelComputeDtype is a patch, which is put in place after the deltas were made, and stays until unloaded."""
    deltas, dtypes = rlg.module("rlg_sampler.weights.deltas").Deltas, []
    own = deltas.from_changes
    monkeypatch.setattr(deltas, "from_changes", lambda *given: dtypes.append(given[3]) or own(*given))
    base = load_checkpoint(checkpoint)
    base.set_model_compute_dtype(torch.bfloat16)
    tuned = run_node("RLGLoadLora", model=base, lora_name="precision", strength=1.0)[0]
    for _ in range(2):
        run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1))
    assert dtypes == [torch.bfloat16] * 2


# How weights are stored → how far ours may be from float32, as part of the largest latent. Weights are widened to the
# dtype that the CPU computes in, float32, and deltas are added there: nothing but the order of sums may differ.
STORED = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "plain float8 e4m3": torch.float8_e4m3fn,
    "plain float8 e5m2": torch.float8_e5m2,
    "scaled float8 e4m3": torch.float8_e4m3fn,
}
TOLERANCE = dict.fromkeys(STORED, CLOSE)


@pytest.mark.parametrize("kind", STORED)
def test_a_delta_is_not_rounded_to_the_dtype_of_the_weights(checkpoint, models_dir, run_node, kind) -> None:
    """The same weights, stored in few bits and in 32. Merging a LoRA rounds it to the few bits; a delta stays whole."""
    dtype, scaled = STORED[kind], kind.startswith("scaled")
    stored, exact, weights = {}, {}, load_file(checkpoint)
    for key, weight in weights.items():
        # In a scaled file linear layers are in few bits, biases without a scale, and everything else is whole.
        module, _, part = key.rpartition(".")
        is_linear = part in ("weight", "bias") and weights[f"{module}.weight"].ndim == 2
        has_scale = scaled and is_linear and part == "weight"
        scale = weight.abs().max() / 400 if has_scale else torch.tensor(1.0)
        few_bits = weight if scaled and not is_linear else (weight / scale).to(dtype)
        stored[key], exact[key] = few_bits, few_bits.float() * scale
        if has_scale:
            stored[f"{module}.scale_weight"] = scale
    if scaled:
        stored["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=dtype)
    paths = [models_dir / "checkpoints" / f"stored-{name}.safetensors" for name in ("few-bits", "whole")]
    for path, file in zip(paths, (stored, exact), strict=True):
        save_file({k: w.contiguous() for k, w in file.items()}, path)

    def load() -> Any:
        options = {} if scaled else {"dtype": dtype}
        return comfy.sd.load_diffusion_model(str(paths[0]), model_options=options)

    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name="precision", strength=1.0)[0]

    whole = load_checkpoint(paths[1])
    expected = two_models(whole, tune(load_checkpoint(paths[1])), 1.6, **task(steps=3))
    base = load()
    assert base.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight.dtype != torch.float32 or scaled
    ours = run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, **task(steps=3))[0]["samples"]
    merged = two_models(load(), tune(load()), 1.6, **task(steps=3))
    assert relative(ours, expected) < TOLERANCE[kind]
    assert relative(merged, expected) > 3 * TOLERANCE[kind]


@pytest.mark.parametrize("lora", ["precision", "lokr.safetensors"])
def test_float8_layers_that_the_file_lists(checkpoint, models_dir, run_node, lora) -> None:
    """Mixed precision as files had it at first: formats in the metadata, a scale beside each weight.

    LoKr with DoRA's scale depends on the whole weight.
    """
    module = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    lokr = {"lokr_w1": torch.eye(2), "lokr_w2": 0.01 * torch.ones(256, 64), "dora_scale": torch.full((512, 1), 2.0)}
    save_file({f"{module}.{name}": part for name, part in lokr.items()}, models_dir / "loras" / "lokr.safetensors")
    prefix = "model.diffusion_model."
    listed, whole, layers = {}, {}, {}
    for key, weight in load_file(checkpoint).items():
        own = key.removeprefix(prefix)
        if not own.startswith("joint_blocks") or not own.endswith(".weight") or weight.ndim != 2:
            listed[own] = whole[key] = weight
            continue
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        listed[own] = (weight / scale).to(torch.float8_e4m3fn)
        listed[own.replace(".weight", ".weight_scale")] = scale
        whole[key] = listed[own].float() * scale
        layers[own.removesuffix(".weight")] = {"format": "float8_e4m3fn"}
    paths = [models_dir / "checkpoints" / f"listed-{name}.safetensors" for name in ("few-bits", "whole")]
    save_file(listed, paths[0], {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})})
    save_file(whole, paths[1])

    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name=lora, strength=1.0)[0]

    base = comfy.sd.load_diffusion_model(str(paths[0]))
    weight = base.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight
    assert isinstance(weight, comfy.quant_ops.QuantizedTensor)
    ours = run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, **task(steps=3))[0]["samples"]
    expected = two_models(load_checkpoint(paths[1]), tune(load_checkpoint(paths[1])), 1.6, **task(steps=3))
    assert relative(ours, expected) < CLOSE


class _Packed(torch.Tensor):
    """Stands for the tensors of packs that store weights in ways of their own, such as GGUF's."""


def test_weights_that_only_another_pack_can_read(checkpoint, models_dir, run_node) -> None:
    """Low-rank matrices are added to what the module gives; a change that depends on the weight is refused."""
    base = load_checkpoint(checkpoint)
    fc1 = base.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1
    fc1.weight = torch.nn.Parameter(fc1.weight.detach().as_subclass(_Packed), requires_grad=False)
    module = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    rows, columns = fc1.weight.shape
    parts = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(rows // 2, columns // 2)}
    save_file({f"{module}.{n}": p for n, p in parts.items()}, models_dir / "loras" / "lokr.safetensors")
    low_rank, whole = (
        run_node("RLGLoadLora", model=base, lora_name=name, strength=1.0)[0]
        for name in ("precision", "lokr.safetensors")
    )
    run_node("RLGKSampler", base=base, tuned=low_rank, scale=1.6, **task(steps=1))
    with pytest.raises(ValueError, match=r"tuned: what it changes in .*mlp\.fc1\.weight .* stored as _Packed"):
        run_node("RLGKSampler", base=base, tuned=whole, scale=1.6, **task(steps=1))
