"""The host's quantised formats: base weights stay as they are, and a delta is not rounded to them."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from safetensors.torch import load_file, save_file

from pairs import CLOSE, FAMILIES, StoredBits, load_checkpoint, relative, task, write_model
from stock_guiders import two_models

pytest.importorskip("comfy_kitchen", reason="this ComfyUI has scaled float8 alone")

_ROTATED = {"convrot_groupsize": 64}


@dataclass(frozen=True)
class Stored:
    """How a checkpoint's linear layers are stored.

    Attributes:
        format: the host's name.
        options: of the format, in the file and for the quantiser.
        rounds_inputs: whether the host computes in few bits too on a CPU, so that a base alone is off already.
    """

    format: str
    options: dict[str, Any] = field(default_factory=dict)
    rounds_inputs: bool = False


KINDS = {
    "float8 e4m3": Stored("float8_e4m3fn"),
    "float8 e5m2": Stored("float8_e5m2"),
    "mxfp8": Stored("mxfp8"),
    "nvfp4": Stored("nvfp4"),
    "nvfp4, smoothed inputs": Stored("nvfp4"),
    "int8": Stored("int8_tensorwise", rounds_inputs=True),
    "int8, rotated": Stored("int8_tensorwise", {"convrot": True, **_ROTATED}, rounds_inputs=True),
    "4-bit weights, 8-bit inputs": Stored("asym_w4a8_int8", _ROTATED, rounds_inputs=True),
    "4-bit weights and inputs": Stored("convrot_w4a4", _ROTATED, rounds_inputs=True),
}


def _skip_unless_known(kind: str) -> None:
    """Older hosts know fewer formats, and fewer options of those."""
    stored = KINDS[kind]
    if stored.format not in QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {stored.format} weights")
    if "smoothed" in kind and "pre_quant_scale" not in QUANT_ALGOS[stored.format]["parameters"]:
        pytest.skip(f"this ComfyUI does not smooth the inputs of {stored.format}")
    if _ROTATED.keys() & stored.options.keys() and "convrot_groupsize" not in inspect.getsource(comfy.ops):
        pytest.skip(f"this ComfyUI does not rotate {stored.format} weights")


def test_every_format_of_the_host_is_tried() -> None:
    assert {stored.format for stored in KINDS.values()} >= QUANT_ALGOS.keys()


def _quantised(weight: torch.Tensor, stored: Stored) -> QuantizedTensor:
    options = dict(stored.options)
    if stored.format.startswith("float8"):
        options["scale"] = "recalculate"
    if "convrot" in options:
        options["per_channel"] = True
    return QuantizedTensor.from_float(weight, QUANT_ALGOS[stored.format]["comfy_tensor_layout"], **options)


def _write_quantised(source: Path, path: Path, kind: str) -> tuple[Path, Path]:
    """The linear layers of a checkpoint's blocks in few bits, and a checkpoint of the same weights in 32."""
    stored, few, whole = KINDS[kind], {}, {}
    settings = torch.tensor(list(json.dumps({"format": stored.format, **stored.options}).encode()), dtype=torch.uint8)
    for key, weight in load_file(source).items():
        if "joint_blocks" not in key or weight.ndim != 2 or not key.endswith(".weight"):
            few[key] = whole[key] = weight
            continue
        module = key.removesuffix(".weight")
        smoothing = torch.linspace(0.5, 2, weight.shape[1]) if "smoothed" in kind else None
        quantised = _quantised(weight if smoothing is None else weight / smoothing, stored)
        whole[key] = quantised.dequantize().float()
        few |= {**quantised.state_dict(key), f"{module}.comfy_quant": settings}
        if smoothing is not None:
            few[f"{module}.pre_quant_scale"] = smoothing
            whole[key] = whole[key] * smoothing
    paths = path.with_suffix(".few.safetensors"), path.with_suffix(".whole.safetensors")
    for file, weights in zip(paths, (few, whole), strict=True):
        save_file({k: w.clone(memory_format=torch.contiguous_format) for k, w in weights.items()}, file)
    return paths


def _load(path: Path) -> Any:
    return comfy.sd.load_diffusion_model(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_on_quantised_weights(checkpoint, models_dir, run_node, kind) -> None:
    """As two float32 models of the same weights: the sums' order alone may differ, and what the host rounds itself."""
    _skip_unless_known(kind)
    few, whole = _write_quantised(checkpoint, models_dir / "checkpoints" / "few-bits", kind)
    inputs = task(steps=3)
    strength = 4.0 if KINDS[kind].rounds_inputs else 1.0  # what the LoRA does is to stand out from that rounding

    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name=checkpoint.stem, strength=strength)[0]

    def sampled(model: Any) -> torch.Tensor:
        return run_node("KSampler", model=model, **inputs)[0]["samples"]

    base = _load(few)
    qkv = base.model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    assert isinstance(qkv.weight, QuantizedTensor)
    alone, bits = sampled(base), StoredBits(qkv)
    expected = two_models(load_checkpoint(whole), tune(load_checkpoint(whole)), 1.6, **inputs)
    ours = run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, **inputs)[0]["samples"]
    merged = two_models(_load(few), tune(_load(few)), 1.6, **inputs)
    assert bits.unchanged and all(bits.unchanged)
    of_host = relative(alone, sampled(load_checkpoint(whole)))
    assert (of_host > CLOSE) == KINDS[kind].rounds_inputs
    assert relative(ours, expected) < 1.5 * of_host + CLOSE < relative(alone, expected)
    assert relative(merged, expected) > max(relative(ours, expected), 3 * CLOSE)


@pytest.fixture(scope="module")
def pair(models_dir: Path) -> tuple[Path, Path]:
    """Two checkpoints with nvfp4 weights, which differ in linear layers alone."""
    _skip_unless_known("nvfp4")
    base = write_model(models_dir, "nvfp4-base")
    generator = torch.Generator().manual_seed(8)
    weights = load_file(base)
    for key in [k for k in weights if k.endswith("qkv.weight")]:
        weights[key] = weights[key] + 0.02 * torch.randn(weights[key].shape, generator=generator)
    tuned = base.with_name("nvfp4-tuned.safetensors")
    save_file(weights, tuned)
    return tuple(_write_quantised(file, file.with_suffix(""), "nvfp4")[0] for file in (base, tuned))


def test_two_quantised_checkpoints(run_node, pair) -> None:
    base, tuned = map(_load, pair)
    ours = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=2))[0]["samples"]
    assert relative(ours, two_models(*map(_load, pair), 1.6, **task(steps=2))) < CLOSE


def test_a_quantised_checkpoint_twice_is_the_base_alone(run_node, pair, caplog) -> None:
    base = _load(pair[0])
    ours = run_node("RLGKSampler", base=base, tuned=_load(pair[0]), scale=1.6, **task())[0]["samples"]
    assert "it has the same weights as base" in caplog.text
    assert torch.equal(ours, run_node("KSampler", model=base, **task())[0]["samples"])


@pytest.mark.parametrize("kind", ["nvfp4", "nvfp4, smoothed inputs"])
def test_changes_that_are_no_product_of_small_matrices(checkpoint, models_dir, run_node, kind) -> None:
    """LoKr with DoRA's scale: what it changes depends on the weight itself."""
    _skip_unless_known(kind)
    few, whole = _write_quantised(checkpoint, models_dir / "checkpoints" / "few-bits", kind)
    generator = torch.Generator().manual_seed(5)
    module = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    rows, columns = load_checkpoint(whole).model.diffusion_model.joint_blocks[0].x_block.mlp.fc1.weight.shape
    sizes = {"lokr_w1": (2, 2), "lokr_w2": (rows // 2, columns // 2)}
    weights = {f"{module}.{name}": 0.1 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    weights[f"{module}.dora_scale"] = torch.linspace(1, 2, rows)[:, None]
    save_file(weights, models_dir / "loras" / "lokr.safetensors")

    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name="lokr.safetensors", strength=1.0)[0]

    base, exact = _load(few), load_checkpoint(whole)
    ours = run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, **task(steps=2))[0]["samples"]
    expected = two_models(exact, tune(load_checkpoint(whole)), 1.6, **task(steps=2))
    assert relative(ours, expected) < CLOSE
    assert relative(run_node("KSampler", model=exact, **task(steps=2))[0]["samples"], expected) > 100 * CLOSE


def test_an_extracted_lora_of_quantised_checkpoints(run_node, models_dir, pair, monkeypatch) -> None:
    """At full rank it is the whole difference: with the base it gives what the two checkpoints give."""
    base, tuned = map(_load, pair)
    monkeypatch.setattr(folder_paths, "output_directory", str(models_dir))  # its "loras" is where the loader looks
    run_node("RLGExtractLora", base=base, tuned=tuned, rank=1024, filename_prefix="loras/of_nvfp4")
    extracted = run_node("RLGLoadLora", model=base, lora_name="of_nvfp4_00001_.safetensors", strength=1.0)[0]
    ours, expected = (
        run_node("RLGKSampler", base=base, tuned=model, scale=1.6, **task(steps=2))[0]["samples"]
        for model in (extracted, tuned)
    )
    assert relative(ours, expected) < 10 * CLOSE


def test_a_module_that_computes_without_its_forward(run_node, models_dir) -> None:
    """The host folds the activation before an int8 layer of Wan's into its kernel, past every change of the module."""
    _skip_unless_known("int8")
    family = FAMILIES["Wan"]
    base = family.load()
    name = "blocks.0.ffn.2"
    module = base.model.diffusion_model.get_submodule(name)
    module.weight = torch.nn.Parameter(_quantised(module.weight.data, KINDS["int8"]), requires_grad=False)
    parts = {"lora_A": (4, module.weight.shape[1]), "lora_B": (module.weight.shape[0], 4)}
    weights = {f"diffusion_model.{name}.{part}.weight": torch.ones(size) for part, size in parts.items()}
    save_file(weights, models_dir / "loras" / "wan-ffn.safetensors")
    tuned = run_node("RLGLoadLora", model=base, lora_name="wan-ffn.safetensors", strength=1.0)[0]
    with pytest.raises(ValueError, match=r"tuned: .*blocks\.0\.ffn\.2 in fused int8 kernels.*another precision"):
        run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **family.task(steps=1))
