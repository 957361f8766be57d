"""Pairs of other model families and LoRAs of every format are guided exactly, as two loaded models in stock guiders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from safetensors.torch import load_file, save_file

from demo.tiny_model import TinySD3
from pairs import CLOSE, FAMILIES, Family, load_checkpoint, matrices, relative, task, write_lora, write_model
from stock_guiders import two_models

RANK, ALPHA = 4, 6.0


@dataclass(frozen=True)
class Loaded:
    """Two equal sets of weights of one family."""

    family: Family
    base: Any
    other: Any


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], Loaded]:
    known: dict[str, Loaded] = {}

    def load(name: str) -> Loaded:
        if name not in known:
            known[name] = Loaded(FAMILIES[name], FAMILIES[name].load(), FAMILIES[name].load())
        return known[name]

    return load


def _randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / max(shape[1:], default=1) ** 0.5


def _factors(seed: int, shape: torch.Size, mid: bool = False) -> dict[str, torch.Tensor]:
    """Matrices of a low-rank change of a weight, by the part that kohya's names call them."""
    inner = shape[1:] if not mid else (shape[1], *[1] * len(shape[2:]))
    factors = {
        "lora_down.weight": _randn(seed, RANK, *inner),
        "lora_up.weight": _randn(seed + 1, shape[0], RANK, *[1] * len(shape[2:])),
        "alpha": torch.tensor(ALPHA),
    }
    if mid:
        factors["lora_mid.weight"] = _randn(seed + 2, RANK, RANK, *shape[2:])
    return factors


def _kind(kind: str, seed: int, shape: torch.Size) -> dict[str, torch.Tensor]:
    """The tensors of one module in a file of this kind."""
    out, columns = shape[0], shape[1:].numel()
    if kind == "conv with mid":
        return _factors(seed, shape, mid=len(shape) == 4 and shape[2] > 1)
    if kind == "LoHa":
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        sizes = ((out, RANK), (RANK, columns)) * 2
        return {n: _randn(seed + i, *size) for i, (n, size) in enumerate(zip(names, sizes, strict=True))}
    if kind == "LoKr":
        return {"lokr_w1": _randn(seed, 2, 2), "lokr_w2": _randn(seed + 1, out // 2, shape[1] // 2, *shape[2:])}
    if kind == "full difference":
        return {"diff": 0.2 * _randn(seed, *shape)}
    parts = _factors(seed, shape)
    if kind == "biases":
        parts["diff_b"] = 0.2 * _randn(seed, out)
    if kind == "DoRA":
        parts["dora_scale"] = 1 + 0.2 * _randn(seed, out, *[1] * (len(shape) - 1)).abs()
    return parts


KINDS = ("low rank", "conv with mid", "biases", "DoRA", "LoHa", "LoKr", "full difference")


def _module_names(model: Any, prefix: str, endings: tuple[str, ...]) -> dict[str, str]:
    """A LoRA format's name → the host's weight, for modules whose host name ends in one of `endings`."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    return {
        name: key
        for name, key in names.items()
        if isinstance(key, str) and name.startswith(prefix) and key.endswith(endings)
    }


def _write(path: Path, model: Any, kind: str, prefix: str, endings: tuple[str, ...]) -> str:
    weights = {}
    shapes = model.model.state_dict()
    for seed, (name, key) in enumerate(sorted(_module_names(model, prefix, endings).items())):
        parts = _kind(kind, 10 * seed, shapes[key].shape)
        if kind == "biases" and key.replace(".weight", ".bias") not in shapes:
            parts.pop("diff_b")
        weights |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    assert len({k.partition(".")[0] for k in weights}) >= 2
    save_file(weights, path)
    return path.name


def _guided(run_node: Callable, of: Loaded, tuned: Any, tuned_other: Any, **changes: Any) -> None:
    """Ours equals two loaded models, and the pair is far from its base."""
    inputs = of.family.task(steps=2, scheduler="sgm_uniform", **changes)
    ours = run_node("RLGKSampler", base=of.base, tuned=tuned, scale=1.6, **inputs)[0]["samples"]
    assert relative(ours, two_models(of.base, tuned_other, 1.6, **inputs)) < CLOSE
    assert relative(run_node("KSampler", model=of.base, **inputs)[0]["samples"], ours) > 100 * CLOSE


UNET_MODULES = ("attn1.to_q.weight", "attn2.to_v.weight", "0.in_layers.2.weight", "ff.net.2.weight")
MODULES = {
    "Flux": ("img_attn.qkv.weight", "img_mlp.0.weight", "linear1.weight", "linear2.weight"),
    "Qwen-Image": ("attn.to_q.weight", "attn.add_k_proj.weight", "img_mlp.net.2.weight"),
    "Wan": ("self_attn.q.weight", "cross_attn.v.weight", "ffn.2.weight", "patch_embedding.weight"),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("SD1.5", kind) for kind in KINDS),
        *((name, "low rank") for name in FAMILIES if name != "SD1.5"),
        ("SDXL", "biases"),
        ("Flux", "DoRA"),
    ],
)
def test_loras_in_kohyas_names(loaded, run_node, models_dir, name, kind) -> None:
    """Linear layers and convolutions, as the stock LoRA loader applies them."""
    of = loaded(name)
    endings = MODULES.get(name, UNET_MODULES)
    file = _write(models_dir / "loras" / "kohya-kind.safetensors", of.base, kind, "lora_unet_", endings)
    tuned, report = run_node("RLGLoadLora", model=of.base, lora_name=file, strength=0.8)
    assert "nothing left out" in report
    (stock,) = run_node("LoraLoaderModelOnly", model=of.other, lora_name=file, strength_model=0.8)
    _guided(run_node, of, tuned, stock)


DIFFUSERS_MODULES = {
    "Flux": ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_v_proj", "transformer_blocks.0.ff.net.2",
             "single_transformer_blocks.0.attn.to_k", "single_transformer_blocks.0.proj_mlp"),
    "Qwen-Image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_add_out"),
    # The host knows Wan's own names alone.
    "Wan": ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.0.ffn.0"),
}  # fmt: skip
_BLOCK = "attentions.0.transformer_blocks.0"
UNET_DIFFUSERS_MODULES = (
    f"down_blocks.0.{_BLOCK}.attn1.to_q", f"mid_block.{_BLOCK}.attn2.to_out.0", f"up_blocks.0.{_BLOCK}.attn1.to_v",
)  # fmt: skip


def _host_target(model: Any, module: str) -> tuple[str, Any]:
    """(weight, part of it) that a module of diffusers' model is in the host's."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    spellings = (f"transformer.{module}", f"lora_unet_{module.replace('.', '_')}", f"diffusion_model.{module}")
    target = next(names[name] for name in spellings if name in names)
    return (target, None) if isinstance(target, str) else (target[0], target[1])


def _matrices(model: Any, module: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    key, part = _host_target(model, module)
    rows, columns = model.model.state_dict()[key].shape
    return _randn(seed, RANK, columns), _randn(seed + 1, rows if part is None else part[2], RANK)


def _by_formula(model: Any, modules: tuple[str, ...], scale: float) -> Any:
    """scale · B·A added to each module's rows: what a trainer means, without any LoRA loader."""
    changes: dict[str, torch.Tensor] = {}
    for seed, module in enumerate(modules):
        key, part = _host_target(model, module)
        down, up = _matrices(model, module, 10 * seed)
        change = changes.setdefault(key, torch.zeros_like(model.model.state_dict()[key]))
        start, length = (0, len(change)) if part is None else part[1:]
        change[start : start + length] += scale * (up @ down)
    tuned = model.clone()
    tuned.add_patches({key: (change,) for key, change in changes.items()}, 1.0)
    return tuned


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_adapters(loaded, run_node, models_dir, name) -> None:
    """alpha / r from the config, names of diffusers' model; the parts of fused weights as well."""
    of = loaded(name)
    modules = DIFFUSERS_MODULES.get(name, UNET_DIFFUSERS_MODULES)
    folder = models_dir / "loras" / "peft-family"
    folder.mkdir(exist_ok=True)
    weights = {}
    for seed, module in enumerate(modules):
        down, up = _matrices(of.base, module, 10 * seed)
        weights |= {f"base_model.model.{module}.lora_{s}.weight": w for s, w in (("A", down), ("B", up))}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tuned, report = run_node("RLGLoadLora", model=of.base, lora_name="peft-family", strength=1.0)
    assert "nothing left out" in report
    _guided(run_node, of, tuned, _by_formula(of.other, modules, ALPHA / RANK))


def test_attention_processors_of_diffusers(loaded, run_node, models_dir) -> None:
    """As DDPO's first LoRAs are saved: scale 1, processors in the names."""
    of = loaded("SD1.5")
    weights = {}
    for seed, module in enumerate(UNET_DIFFUSERS_MODULES):
        down, up = _matrices(of.base, module, 10 * seed)
        name = module.removesuffix(".0").replace(".to_", ".processor.to_")
        weights |= {f"unet.{name}_lora.{s}.weight": w for s, w in (("down", down), ("up", up))}
    save_file(weights, models_dir / "loras" / "processors.safetensors")
    tuned, report = run_node("RLGLoadLora", model=of.base, lora_name="processors.safetensors", strength=1.0)
    assert "nothing left out" in report
    _guided(run_node, of, tuned, _by_formula(of.other, UNET_DIFFUSERS_MODULES, 1.0))


@pytest.mark.parametrize("name", FAMILIES)
def test_fully_tuned_models(loaded, run_node, name) -> None:
    of = loaded(name)
    tuned = of.family.load(seed=1)
    for ours, weight in zip(
        tuned.model.diffusion_model.parameters(), of.base.model.diffusion_model.parameters(), strict=True
    ):
        ours.data = weight + 0.05 * ours  # near its base, as a tuned model is
    _guided(run_node, of, tuned, tuned)


def test_a_v_prediction_model_is_one(loaded) -> None:
    """Else its tests would show nothing that SD1.5's do not."""
    assert loaded("SD2.x, v-prediction").base.model.model_type.name == "V_PREDICTION"


def test_sd35_large_type_through_stock_loaders(run_node, models_dir) -> None:
    """MMDiT with normed queries and keys and without dual attention, from a checkpoint file and a PEFT folder."""
    config = TinySD3(depth=3, dual_attention_blocks=0)
    path = write_model(models_dir, "large-type", config)
    folder = write_lora(models_dir, "large-type", config)
    base, other = load_checkpoint(path), load_checkpoint(path)
    pair = [run_node("RLGLoadLora", model=m, lora_name=folder.name, strength=1.0)[0] for m in (base, other)]
    ours = run_node("RLGKSampler", base=base, tuned=pair[0], scale=1.6, **task(steps=2))[0]["samples"]
    assert relative(ours, two_models(base, pair[1], 1.6, **task(steps=2))) < CLOSE


@pytest.mark.slow
def test_sd15_through_stock_loaders(run_node, models_dir) -> None:
    """The host knows SD1.5 by its widths, so the checkpoint has those; its depth is as small as it may be."""
    unet_config = {**FAMILIES["SD1.5"].unet_config, "model_channels": 320, "context_dim": 768}
    family = Family("SD15", unet_config, (4, 8, 8), text=768)
    weights = family.load().model.diffusion_model.state_dict()
    for name, change in (("sd15-base", 0.0), ("sd15-tuned", 0.02)):
        path = models_dir / "checkpoints" / f"{name}.safetensors"
        file = {f"model.diffusion_model.{k}": (w * (1 + change * torch.randn_like(w))) for k, w in weights.items()}
        save_file({k: w.contiguous() for k, w in file.items()}, path)
    base, tuned = (
        comfy.sd.load_diffusion_model(str(models_dir / "checkpoints" / f"{name}.safetensors"))
        for name in ("sd15-base", "sd15-tuned")
    )
    assert type(base.model.model_config).__name__ == "SD15"
    of = Loaded(family, base, base)
    _guided(run_node, of, tuned, tuned)
    other = comfy.sd.load_diffusion_model(str(models_dir / "checkpoints" / "sd15-base.safetensors"))
    file = _write(models_dir / "loras" / "sd15.safetensors", base, "low rank", "lora_unet_", UNET_MODULES)
    ours, _ = run_node("RLGLoadLora", model=base, lora_name=file, strength=1.0)
    (stock,) = run_node("LoraLoaderModelOnly", model=other, lora_name=file, strength_model=1.0)
    _guided(run_node, of, ours, stock)


def test_text_encoder_parts_are_reported_as_left_out(loaded, run_node, models_dir, caplog) -> None:
    """Both models read one prompt: an encoder that only the tuned one has would make two of it."""
    of = loaded("SD1.5")
    file = models_dir / "loras" / "with-text.safetensors"
    _write(file, of.base, "low rank", "lora_unet_", UNET_MODULES)
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    text = {f"{name}.{part}": tensor for part, tensor in _factors(7, torch.Size((8, 8))).items()}
    save_file({**load_file(file), **text}, file)
    with caplog.at_level("WARNING"):
        tuned, report = run_node("RLGLoadLora", model=of.base, lora_name=file.name, strength=1.0)
    assert "3 keys for the text encoder" in report and name in report and report in caplog.text
    (stock,) = run_node("LoraLoaderModelOnly", model=of.other, lora_name=file.name, strength_model=1.0)
    _guided(run_node, of, tuned, stock)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_low_rank_change_of_any_convolution(rlg, dimensions, groups) -> None:
    """Stride, dilation, padding and its mode: as torch convolves with the changed weight."""
    deltas, difference = rlg.module("rlg_sampler.weights.deltas"), rlg.module("rlg_sampler.weights.patch_difference")
    layer = getattr(comfy.ops.disable_weight_init, f"Conv{dimensions}d")
    conv = layer(4, 6, 3, stride=2, padding=2, dilation=2, groups=groups, padding_mode="circular")
    conv.weight.data, conv.bias.data = _randn(0, *conv.weight.shape), _randn(1, 6)
    down, up = _randn(2, 2, *conv.weight.shape[1:]), _randn(3, 6, 2)
    patch = (0.7, LoRAAdapter(set(), (up, down, 3.0, None, None, None)), 1.0, None, None)
    model = torch.nn.ModuleDict({"conv": conv})
    (change,) = difference.patch_difference({}, {"conv.weight": [patch]}).values()

    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    made = deltas.Deltas.from_changes({"conv.weight": change}, patcher, cpu, torch.float32, {})
    x = _randn(4, 3, 4, *[9] * dimensions)
    out = conv(x)
    made.modules["conv"].add(conv, x, out)
    changed = layer(4, 6, 3, stride=2, padding=2, dilation=2, groups=groups, padding_mode="circular")
    changed.weight.data = conv.weight + 0.7 * 3.0 / 2 * (up @ down.flatten(1)).view(conv.weight.shape)
    changed.bias.data = conv.bias
    torch.testing.assert_close(out, changed(x), rtol=1e-5, atol=1e-5)
    held = made.modules["conv"]
    assert (held.dense is None) == (groups == 1), "one difference per kernel only where two products do not"
    sizes = [t.nbytes for t in (held.dense, *matrices(held.low_rank)) if t is not None]
    assert deltas.Deltas.memory_of({"conv.weight": change}, model, torch.float32) == sum(sizes)


def test_parts_of_a_fused_weight_on_devices_that_cannot_write_into_a_view(rlg, monkeypatch) -> None:
    """Apple's: the same sums, by another way."""
    module = rlg.module("rlg_sampler.weights.low_rank")
    layer = torch.nn.Linear(8, 12)
    terms = [((start, start + 4), _randn(start, 4, 2), _randn(start + 1, 2, 8)) for start in (0, 4, 8)]
    change = module.LowRank.of(terms)
    x = _randn(9, 2, 3, 8)
    expected = torch.nn.functional.linear(x, layer.weight + torch.cat([up @ down for _, up, down in terms]), layer.bias)
    for devices in (module.WRITE_INTO_A_VIEW, ()):
        monkeypatch.setattr(module, "WRITE_INTO_A_VIEW", devices)
        out = layer(x).detach()
        change.add(layer, x, out)
        torch.testing.assert_close(out, expected)


class _Gate(torch.nn.Module):
    """Has a matrix and is no linear layer, as the gate of a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 4))


def test_a_matrix_alone_makes_no_linear_layer(rlg) -> None:
    """Nobody knows what such a module does with its weight, so nothing can be added to what it gives."""
    pair_of = rlg.module("rlg_sampler.weights.pair").ModelPair.from_models
    model, cpu = torch.nn.ModuleDict({"gate": _Gate(), "linear": torch.nn.Linear(4, 4)}), torch.device("cpu")
    base = comfy.model_patcher.ModelPatcher(model, cpu, cpu)

    def tuned(key: str) -> comfy.model_patcher.ModelPatcher:
        tuned = base.clone()
        tuned.add_patches({key: (torch.ones(4, 4),)}, 1.0)
        return tuned

    assert [*pair_of(base, tuned("linear.weight")).changes] == ["linear.weight"]
    with pytest.raises(ValueError, match=r"tuned: it changes gate\.weight, which cannot be changed on the fly"):
        pair_of(base, tuned("gate.weight"))
