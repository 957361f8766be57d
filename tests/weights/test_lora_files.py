"""LoRA files come in at the strength their trainer meant, or not at all."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import comfy.lora
import comfy.utils
import execution
import nodes as comfy_nodes
import pytest
import torch
from comfy_api.v0_0_2 import io as comfy_io
from diffusers.utils import convert_state_dict_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import diffusers_rlg
from demo.tiny_model import TinySD3
from pairs import FAMILIES, as_single_file, load_checkpoint, write_lora, write_model
from without_host import name_patterns, peft_config

QKV = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
TO_Q, TO_K = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Any:
    return load_checkpoint(write_model(models_dir, "lora-files"))


@pytest.fixture(scope="module")
def loras(models_dir: Path) -> Path:
    return models_dir / "loras"


@pytest.fixture
def load(model: Any, run_node: Callable) -> Callable[..., tuple[Any, str]]:
    return lambda name, strength=1.0: run_node("RLGLoadLora", model=model, lora_name=name, strength=strength)


def change(tuned: Any) -> torch.Tensor:
    """What the host would add to the first block's fused qkv weight."""
    zero = torch.zeros_like(tuned.model.state_dict()[QKV], dtype=torch.float32)
    return comfy.lora.calculate_weight(tuned.patches[QKV], zero, QKV)


def product(folder: Path, module: str) -> torch.Tensor:
    weights = load_file(folder / "adapter_model.safetensors")
    return weights[f"base_model.model.{module}.lora_B.weight"] @ weights[f"base_model.model.{module}.lora_A.weight"]


@pytest.mark.parametrize(
    ("settings", "scale_q", "scale_k"),
    [
        ({"rank": 8, "alpha": 16.0}, 2.0, 2.0),
        ({"rank": 8, "alpha": 4.0}, 0.5, 0.5),
        ({"rank": 4, "alpha": 8.0, "use_rslora": True}, 4.0, 4.0),
        ({"rank": 8, "alpha": 8.0, "alpha_pattern": {"to_q": 24.0}}, 3.0, 1.0),
        ({"rank": 8, "alpha": 8.0, "rank_pattern": {r"transformer_blocks\.0\.attn\.to_q": 2}}, 4.0, 1.0),
    ],
    ids=["alpha > r", "alpha < r", "rslora", "alpha_pattern", "rank_pattern"],
)
def test_peft_folder_has_the_scale_of_its_config(load, loras, settings, scale_q, scale_k) -> None:
    folder = write_lora(loras.parent, "peft-case", **settings)
    tuned, report = load("peft-case")
    width = product(folder, TO_Q).shape[0]
    torch.testing.assert_close(change(tuned)[:width], scale_q * product(folder, TO_Q), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(change(tuned)[width : 2 * width], scale_k * product(folder, TO_K), rtol=1e-5, atol=1e-7)
    assert "adapter_config.json" in report and "nothing left out" in report


def test_a_config_may_begin_with_a_mark(load, loras) -> None:
    """As editors of Windows write UTF-8."""
    folder = write_lora(loras.parent, "mark", rank=4, alpha=8.0)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8"), encoding="utf-8-sig")
    tuned, _ = load("mark")
    torch.testing.assert_close(change(tuned)[: len(product(folder, TO_Q))], 2.0 * product(folder, TO_Q))


def test_strength_multiplies_the_trained_scale(load, loras) -> None:
    folder = write_lora(loras.parent, "strength", rank=4, alpha=8.0)
    tuned, _ = load("strength", -0.5)
    width = product(folder, TO_Q).shape[0]
    torch.testing.assert_close(change(tuned)[:width], -1.0 * product(folder, TO_Q), rtol=1e-5, atol=1e-7)


def _renamed(folder: Path, rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
    return {rename(k): v for k, v in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: k.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
        lambda k: k.removeprefix("base_model.model."),
        lambda k: k.replace("base_model.model.", "transformer."),
    ],
    ids=["adapter name in the keys", "no prefix", "diffusers prefix"],
)
def test_peft_keys_in_other_spellings(load, loras, rename) -> None:
    folder = write_lora(loras.parent, "spelling-source")
    other = loras / "spelling"
    other.mkdir(exist_ok=True)
    save_file(_renamed(folder, rename), other / "adapter_model.safetensors")
    (other / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    expected, _ = load("spelling-source")
    tuned, report = load("spelling")
    assert torch.equal(change(tuned), change(expected))
    assert "nothing left out" in report


def test_config_beside_a_plainly_named_file(load, loras) -> None:
    folder = write_lora(loras.parent, "plain-source")
    other = loras / "plain"
    other.mkdir(exist_ok=True)
    for name, target in (("adapter_model.safetensors", "my-lora.safetensors"), ("adapter_config.json",) * 2):
        (other / target).write_bytes((folder / name).read_bytes())
    assert torch.equal(change(load("plain/my-lora.safetensors")[0]), change(load("plain-source")[0]))


def test_config_in_the_metadata_of_diffusers(load, loras) -> None:
    """diffusers' save_lora_weights keeps the LoraConfig in the file's metadata."""
    folder = write_lora(loras.parent, "metadata-source")
    config = json.loads((folder / "adapter_config.json").read_text())
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    weights = _renamed(folder, lambda k: k.replace("base_model.model.", "transformer."))
    save_file(weights, loras / "metadata.safetensors", metadata)
    assert torch.equal(change(load("metadata.safetensors")[0]), change(load("metadata-source")[0]))


def test_config_that_diffusers_writes_for_a_model_alone(load, loras) -> None:
    """By `model.save_lora_adapter`, whose metadata has no prefix."""
    folder = write_lora(loras.parent, "adapter-source", rank=8, alpha=16.0)
    config = json.loads((folder / "adapter_config.json").read_text())
    known = LoraConfig(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=config["target_modules"])
    with torch.inference_mode(False):
        transformer = diffusers_rlg.transformer(loras.parent / "checkpoints" / "lora-files.safetensors", TinySD3())
        transformer.add_adapter(known, "default")
        weights = _renamed(folder, lambda k: k.removeprefix("base_model.model."))
        set_peft_model_state_dict(transformer, weights, "default")
        transformer.save_lora_adapter(str(loras / "by_diffusers"))
    tuned, report = load("by_diffusers/pytorch_lora_weights.safetensors")
    assert torch.equal(change(tuned), change(load("adapter-source")[0]))
    assert "scale 2 (metadata of " in report and "nothing left out" in report


def test_a_text_encoder_of_another_rank_is_left_out(load, loras) -> None:
    """It has a config of its own in the same metadata."""
    folder = write_lora(loras.parent, "text-source")
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = _renamed(folder, lambda k: k.replace("base_model.model.", "transformer."))
    of_text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    weights |= {f"{of_text}.lora_A.weight": torch.ones(2, 8), f"{of_text}.lora_B.weight": torch.ones(8, 2)}
    configs = {"transformer": config, "text_encoder": {**config, "r": 2, "lora_alpha": 2}}
    metadata = {f"{part}.{name}": value for part, own in configs.items() for name, value in own.items()}
    save_file(weights, loras / "with_text.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    tuned, report = load("with_text.safetensors")
    assert torch.equal(change(tuned), change(load("text-source")[0]))
    assert "2 keys for the text encoder" in report


@pytest.mark.parametrize("alpha", [None, 8])
def test_what_scripts_of_diffusers_write_for_a_unet(run_node, loras, alpha) -> None:
    """`lora.down` and `lora.up`, which `convert_state_dict_to_diffusers` makes of PEFT's names."""
    model = FAMILIES["SD1.5"].load()
    stored = model.model.state_dict()
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    projections = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    by_peft, own_names = {}, {}
    for name, own in names.items():
        if name.endswith(projections):
            rows, columns = stored[f"diffusion_model.{own}"].shape
            module = f"unet.{name.removesuffix('.weight')}"
            own_names[f"diffusion_model.{own}"] = module
            by_peft |= {f"{module}.lora_A.weight": torch.randn(4, columns)}
            by_peft |= {f"{module}.lora_B.weight": torch.randn(rows, 4)}
    written = convert_state_dict_to_diffusers(by_peft)
    assert any(".lora.down." in key for key in written)
    config = {"unet.r": 4, "unet.lora_alpha": alpha, "unet.peft_type": "LORA"}
    metadata = None if alpha is None else {"lora_adapter_metadata": json.dumps(config)}
    save_file(written, loras / "script.safetensors", metadata)
    tuned, report = run_node("RLGLoadLora", model=model, lora_name="script.safetensors", strength=1.0)
    assert tuned.patches.keys() == own_names.keys() and "nothing left out" in report
    for key, module in own_names.items():
        expected = (alpha or 4) / 4 * by_peft[f"{module}.lora_B.weight"] @ by_peft[f"{module}.lora_A.weight"]
        found = comfy.lora.calculate_weight(tuned.patches[key], torch.zeros_like(expected), key)
        torch.testing.assert_close(found, expected)


def test_config_of_another_adapter_does_not_touch_a_diffusers_file(load, loras) -> None:
    """A file in diffusers' own format is complete; a loose config in the same folder is not its own."""
    folder = write_lora(loras.parent, "loose-source", rank=4, alpha=8.0)
    other = loras / "loose"
    other.mkdir(exist_ok=True)
    save_file(_renamed(folder, lambda k: k.replace("base_model.model.", "transformer.")), other / "style.safetensors")
    (other / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    tuned, report = load("loose/style.safetensors")
    width = product(folder, TO_Q).shape[0]
    torch.testing.assert_close(change(tuned)[:width], product(folder, TO_Q), rtol=1e-5, atol=1e-7)
    assert "scale 1 " in report


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 4, "lora_alpha": 8}, True),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 8}}, True),
        ({"r": 4, "lora_alpha": 4}, False),
        ({"r": 8, "lora_alpha": 16}, False),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}}, False),
        ({"r": 4}, False),
        ({"r": 4, "lora_alpha": 8, "use_dora": True}, False),
    ],
    ids=["fits", "by a pattern", "scale 1", "another rank", "another rank by a pattern", "no alpha", "DoRA"],
)
def test_a_config_that_is_not_taken_is_spoken_of_where_it_could_be_meant(load, loras, settings, said) -> None:
    """A PEFT file under another name loses its scale; the report says what to do."""
    folder = write_lora(loras.parent, "untaken-source", rank=4, alpha=8.0)
    other = loras / "untaken"
    other.mkdir(exist_ok=True)
    save_file(_renamed(folder, lambda k: k.replace("base_model.model.", "transformer.")), other / "mine.safetensors")
    (other / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tuned, report = load("untaken/mine.safetensors")
    width = product(folder, TO_Q).shape[0]
    torch.testing.assert_close(change(tuned)[:width], product(folder, TO_Q), rtol=1e-5, atol=1e-7)
    assert "scale 1 (no alpha in the file: scale 1" in report
    advice = "without the adapter_config.json beside it, which is for files that PEFT saved: if this is one, rename it"
    assert (f"{advice} to adapter_model.safetensors)" in report) == ("adapter_config" in report) == said


def test_config_of_another_adapter_does_not_touch_a_file_with_the_host_s_names(load, loras) -> None:
    """As trainers write them for ComfyUI, with PEFT's names for the matrices."""
    folder = write_lora(loras.parent, "trainers-source", rank=4, alpha=8.0)
    other = loras / "trainers"
    other.mkdir(exist_ok=True)
    name = f"diffusion_model.{QKV.removeprefix('diffusion_model.').removesuffix('.weight')}"
    a, b = torch.randn(4, 128) * 0.1, torch.randn(3 * 128, 4) * 0.1
    weights = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(weights, other / "style.safetensors")
    (other / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    tuned, _ = load("trainers/style.safetensors")
    torch.testing.assert_close(change(tuned), b @ a, rtol=1e-5, atol=1e-7)


def test_alpha_tensors_of_the_file_win(load, loras) -> None:
    folder = write_lora(loras.parent, "alpha-source", rank=4, alpha=8.0)
    file = as_single_file(folder, loras / "alpha.safetensors")  # alpha = 2 r
    tuned, report = load(file.name)
    assert torch.allclose(change(tuned), change(load("alpha-source")[0]))
    assert "alpha tensors in the file" in report


def test_kohya_names(load, loras) -> None:
    folder = write_lora(loras.parent, "kohya-source", rank=4, alpha=8.0)

    def kohya(key: str) -> str:
        module, side = key.removeprefix("base_model.model.").split(".lora_")
        suffix = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[side]
        return f"lora_transformer_{module.replace('.', '_')}.{suffix}"

    weights = _renamed(folder, kohya)
    for key in [k for k in weights if k.endswith(".lora_down.weight")]:
        weights[key.replace(".lora_down.weight", ".alpha")] = torch.tensor(8.0)
    save_file(weights, loras / "kohya.safetensors")
    assert torch.allclose(change(load("kohya.safetensors")[0]), change(load("kohya-source")[0]))


def test_partly_matching_file_loads_with_a_warning_that_lists_the_rest(load, loras, caplog) -> None:
    folder = write_lora(loras.parent, "partial-source")
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.no.such.layer.lora_A.weight"] = torch.zeros(8, 4)
    weights["base_model.model.no.such.layer.lora_B.weight"] = torch.zeros(4, 8)
    other = loras / "partial"
    other.mkdir(exist_ok=True)
    save_file(weights, other / "adapter_model.safetensors")
    (other / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    with caplog.at_level("WARNING"):
        tuned, report = load("partial")
    assert torch.equal(change(tuned), change(load("partial-source")[0]))
    assert "no.such.layer.lora_A.weight" in report and "left out" in report
    assert report in caplog.text


# What is wrong with the file → what the one sentence must say.


def _refused(load: Callable, name: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_lora_for_another_architecture(load, loras) -> None:
    weights = {
        f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_{side}.weight": torch.zeros(4, 4)
        for side in ("up", "down")
    }
    save_file(weights, loras / "sdxl.safetensors")
    message = _refused(load, "sdxl.safetensors")
    assert "none of the 2 keys" in message and "(SD3)" in message and "lora_unet_input_blocks_4_1" in message


@pytest.mark.parametrize("prefix", ["base_model.model.", ""], ids=["PEFT prefix", "no prefix"])
def test_adapter_without_its_config(load, loras, prefix) -> None:
    folder = write_lora(loras.parent, "no-config")
    (folder / "adapter_config.json").unlink()
    weights = _renamed(folder, lambda k: k.replace("base_model.model.", prefix))
    save_file(weights, folder / "adapter_model.safetensors")
    message = _refused(load, "no-config/adapter_model.safetensors")
    assert message.startswith("lora_name:") and "without its adapter_config.json" in message


def test_truncated_file(load, loras) -> None:
    folder = write_lora(loras.parent, "truncated-source")
    data = (folder / "adapter_model.safetensors").read_bytes()
    (loras / "truncated.safetensors").write_bytes(data[: len(data) // 2])
    assert "'truncated.safetensors' cannot be read" in _refused(load, "truncated.safetensors")


def test_lora_of_another_width(load, loras) -> None:
    write_lora(loras.parent, "wide", config=TinySD3(depth=3))
    message = _refused(load, "wide")
    assert "joint_blocks.0.context_block.attn" in message or "joint_blocks.0.x_block.attn" in message
    assert "[128, 128]" in message and "[192, 192]" in message


def test_pickled_file_is_not_executed(load, loras, tmp_path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    (loras / "trap.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    assert "cannot be read" in _refused(load, "trap.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("start", [True, "gaussian", "eva", None])
def test_beginnings_that_leave_the_base_alone_are_loaded(load, loras, start) -> None:
    folder = write_lora(loras.parent, "begun")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": start}))
    assert "nothing left out" in load("begun")[1]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c.update(peft_type="LOHA"), "peft_type is LOHA"),
        (lambda c: c.update(use_dora=True), "DoRA"),
        (lambda c: c.update(init_lora_weights="pissa_niter_4"), "on base weights that it changed itself"),
        (lambda c: c.update(init_lora_weights="olora"), "trained with olora on base weights"),
        (lambda c: c.update(init_lora_weights="lora_ga"), "trained with lora_ga on base weights"),
        (lambda c: c.pop("lora_alpha"), "lora_alpha"),
        (lambda c: c.update(r=0), "r=0"),
        (lambda c: c.update(r=5), "rank 5, but the file's matrices have rank 8"),
        (lambda c: c.update(alpha_pattern=[1]), "patterns are missing or not numbers"),
    ],
)
def test_config_that_cannot_be_right(load, loras, edit, says) -> None:
    folder = write_lora(loras.parent, "bad-config")
    config = json.loads((folder / "adapter_config.json").read_text())
    edit(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert says in _refused(load, "bad-config")


def test_config_that_is_no_json(load, loras) -> None:
    folder = write_lora(loras.parent, "no-json")
    (folder / "adapter_config.json").write_text("{")
    assert "cannot be read as JSON" in _refused(load, "no-json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"r": 1e309, "lora_alpha": 8}', "inf is no finite number"),
        ('{"r": 8, "lora_alpha": 1e309}', "inf is no finite number"),
        ('{"r": 8.5, "lora_alpha": 8}', "8.5 is no whole number"),
        ('{"r": true, "lora_alpha": 8}', "True is no finite number"),
        ('{"r": 8, "lora_alpha": 8, "rank_pattern": {"(": 4}}', "'(' is no pattern for module names (unclosed group)"),
        ('{"r": 8, "lora_alpha": 8, "alpha_pattern": {"(?=q)": 4}}', "'(?=q)' is no pattern for module names"),
        ('{"r": 8, "lora_alpha": 8, "rank_pattern": {"(a{1000}){1000}": 4}}', "is no pattern for module names"),
        ("[" * 100_000, "brackets are nested too deep"),
        ('{"r": ' + "9" * 5000 + "}", "a number in it has thousands of digits"),
        ("[]", "holds no settings"),
    ],
)
def test_config_of_a_stranger(load, loras, text, says) -> None:
    folder = write_lora(loras.parent, "strange-config")
    (folder / "adapter_config.json").write_text(text)
    message = _refused(load, "strange-config")
    assert message.startswith("lora_name:") and says in message and len(message) < 600


def test_a_pattern_that_keeps_a_backtracking_engine_busy_is_matched_at_once(load, loras) -> None:
    folder = write_lora(loras.parent, "slow-pattern", rank=8, alpha=16.0)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"(([a-z_.0-9]+)+)+!": 1.0, "(.*)*(.*)*(.*)*!": 1.0}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    started = time.monotonic()
    tuned, _ = load("slow-pattern")
    assert time.monotonic() - started < 2
    width = product(folder, TO_Q).shape[0]
    torch.testing.assert_close(change(tuned)[:width], 2.0 * product(folder, TO_Q), rtol=1e-5, atol=1e-7)


def _damaged(loras: Path, name: str, damage: Callable[[dict[str, torch.Tensor], str, str], None]) -> str:
    """A LoRA whose tensors `damage` has changed: it is given all of them, and the keys of one pair of matrices."""
    folder = write_lora(loras.parent, name)
    weights = load_file(folder / "adapter_model.safetensors")
    damage(weights, *(f"base_model.model.{TO_Q}.lora_{side}.weight" for side in "AB"))
    save_file(weights, folder / "adapter_model.safetensors")
    return name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_lora_of_values_that_give_a_black_picture(load, loras, value) -> None:
    def damage(weights: dict[str, torch.Tensor], a: str, b: str) -> None:
        weights[b][0, 0] = value
        weights[a] = 100 * torch.ones_like(weights[a])  # so that 3e38 in the other matrix is too much for the product

    message = _refused(load, _damaged(loras, "black", damage))
    assert "NaN, infinity or values too large" in message and "joint_blocks.0.x_block.attn.qkv" in message


def test_matrices_of_different_ranks(load, loras) -> None:
    def damage(weights: dict[str, torch.Tensor], a: str, b: str) -> None:
        weights[b] = weights[b][:, :5].contiguous()

    message = _refused(load, _damaged(loras, "two-ranks", damage))
    assert "lora_A (or lora_down) has rank 8, lora_B (or lora_up) has rank 5" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.complex64])
def test_matrices_that_are_no_floats(load, loras, dtype) -> None:
    def damage(weights: dict[str, torch.Tensor], a: str, b: str) -> None:
        weights[a] = weights[a].to(dtype)

    message = _refused(load, _damaged(loras, "no-floats", damage))
    assert f"holds {str(dtype).removeprefix('torch.')} values for" in message


@pytest.mark.parametrize("shape", [(), (8,), (0, 128), (8, 0), (8, 128, 1, 2)])
def test_matrices_that_are_none(load, loras, shape) -> None:
    def damage(weights: dict[str, torch.Tensor], a: str, b: str) -> None:
        weights[a] = torch.zeros(shape)

    message = _refused(load, _damaged(loras, "no-matrix", damage))
    assert message.startswith("lora_name:") and TO_Q in message or "attn.qkv" in message


@pytest.mark.parametrize("alpha", [torch.tensor(math.nan), torch.zeros(2), torch.tensor(True), torch.tensor(1j)])
def test_alphas_that_are_no_number(load, loras, alpha) -> None:
    folder = write_lora(loras.parent, "alpha-source")
    weights = _renamed(folder, lambda k: k.replace("base_model.model.", "transformer."))
    save_file({**weights, f"transformer.{TO_Q}.alpha": alpha}, loras / "no-alpha.safetensors")
    assert f"transformer.{TO_Q}.alpha that is no finite number" in _refused(load, "no-alpha.safetensors")


@pytest.mark.parametrize(
    "sizes",
    [
        {"hada_w1_a": (512, 4), "hada_w1_b": (4, 128), "hada_w2_a": (512, 5), "hada_w2_b": (4, 128)},
        {"lokr_w1": (3, 3), "lokr_w2": (256, 64)},
        {"lokr_w1_a": (2, 2), "lokr_w2": (256, 64)},
        {"oft_blocks": (7, 7, 7)},
        {"lora_up.weight": (512, 4), "lora_down.weight": (4, 128), "dora_scale": (3, 3)},
        {"lora_up.weight": (512, 4), "lora_down.weight": (4, 128), "reshape_weight": (2,)},
    ],
    ids=["LoHa", "LoKr", "half of a LoKr", "OFT", "DoRA", "another shape of the weight"],
)
def test_adapters_that_the_host_cannot_apply(load, loras, sizes) -> None:
    """It would say so in its log alone, if at all, and sample without them."""
    module = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    save_file({f"{module}.{k}": torch.ones(size) for k, size in sizes.items()}, loras / "odd.safetensors")
    message = _refused(load, "odd.safetensors")
    assert message.startswith("lora_name: 'odd.safetensors'") and len(message) < 600


def test_an_oft_with_a_constraint(load, loras) -> None:
    """Its size is compared with a number, for which a weight without data is no use."""
    module = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    weights = {f"{module}.oft_blocks": torch.randn(8, 64, 64) * 0.01, f"{module}.alpha": torch.tensor(0.1)}
    save_file(weights, loras / "oft.safetensors")
    _, report = load("oft.safetensors")
    assert "nothing left out" in report


def test_a_lora_that_was_replaced_is_loaded_anew(rlg, loras) -> None:
    """RLG Train LoRA writes its LoRA again under its name; a prompt run again must not keep the old one."""
    folder, nodes = write_lora(loras.parent, "replaced"), rlg.nodes
    fingerprints = [
        lambda: nodes["RLGLoadLora"].fingerprint_inputs(model=None, lora_name="replaced", strength=1.0),
        lambda: nodes["RLGLoadModels"].fingerprint_inputs(ckpt_name="x", lora_name="replaced", lora_strength=1.0),
        lambda: nodes["RLGLoraAxis"].fingerprint_inputs(model=None, lora_1="replaced", lora_2="none", axis=None),
    ]
    for changed in ("adapter_model.safetensors", "adapter_config.json"):
        before = [fingerprint() for fingerprint in fingerprints]
        assert before == [fingerprint() for fingerprint in fingerprints]
        file = folder / changed
        file.write_bytes(file.read_bytes() + b" ")
        assert all(fingerprint() != earlier for fingerprint, earlier in zip(fingerprints, before, strict=True))
    linked = nodes["RLGLoadLora"].fingerprint_inputs(model=None, lora_name=None, strength=1.0)
    assert linked == nodes["RLGLoadLora"].fingerprint_inputs(model=None, lora_name="gone", strength=1.0)


class _Seen:
    """An output node that keeps what it gets."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "see", "", True
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"base": ("MODEL",), "tuned": ("MODEL",), "report": ("STRING",)}}
    )
    seen: ClassVar[list[SimpleNamespace]] = []

    def see(self, **given: Any) -> dict:
        self.seen.append(SimpleNamespace(**given))
        return {}


def test_another_lora_does_not_load_the_checkpoint_anew(rlg, model, loras, monkeypatch) -> None:
    """RLG Load Models reads 12 GB for SD3.5, and what was sampled with the base stays good. By the host's executor."""
    for name, seed in (("first", 1), ("second", 2)):
        write_lora(loras.parent, name, seed=seed)
    read, load_checkpoint_file = [], comfy_nodes.CheckpointLoaderSimple.load_checkpoint
    monkeypatch.setattr(
        comfy_nodes.CheckpointLoaderSimple,
        "load_checkpoint",
        lambda self, ckpt_name: read.append(ckpt_name) or load_checkpoint_file(self, ckpt_name),
    )
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "_Seen", _Seen)
    monkeypatch.setattr(_Seen, "seen", [])
    sent: list[tuple] = []
    server = SimpleNamespace(
        client_id="page", last_node_id=None, last_prompt_id=None, send_sync=lambda *event: sent.append(event)
    )
    monkeypatch.setattr(rlg.module("nodes.page"), "running_server", lambda: server)
    executor = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})

    def run(lora: str, strength: float) -> SimpleNamespace:
        inputs = {"ckpt_name": "lora-files.safetensors", "lora_name": lora, "lora_strength": strength}
        links = {"base": ["1", 0], "tuned": ["1", 1], "report": ["1", 4]}
        graph = {
            "1": {"class_type": "RLGLoadModels", "inputs": inputs},
            "2": {"class_type": "_Seen", "inputs": links},
        }
        asyncio.run(executor.execute_async(graph, "id", {"client_id": "page"}, ["2"]))
        assert executor.success
        return _Seen.seen[-1]

    first = run("first", 1.0)
    torch.testing.assert_close(change(first.tuned)[:128], 2.0 * product(loras / "first", TO_Q), rtol=1e-5, atol=1e-7)
    for lora, strength in (("second", 1.0), ("second", 0.5)):
        again = run(lora, strength)
        assert again.base is first.base and again.report.startswith(f"{lora}: ")
        expected = 2.0 * strength * product(loras / lora, TO_Q)
        torch.testing.assert_close(change(again.tuned)[:128], expected, rtol=1e-5, atol=1e-7)
    file = loras / "second" / "adapter_model.safetensors"
    file.write_bytes(write_lora(loras.parent, "third", seed=3).joinpath(file.name).read_bytes())
    again = run("second", 0.5)
    torch.testing.assert_close(change(again.tuned)[:128], product(loras / "third", TO_Q), rtol=1e-5, atol=1e-7)
    assert read == ["lora-files.safetensors"]
    sent.clear()
    run("second", 0.0)
    (warned,) = [event[1] for event in sent if event[0] == "rlg_warning"]
    assert warned["node"] == "1" and "strength is 0" in warned["sentence"], "a part of the node speaks for the node"


def test_a_small_file_that_says_it_is_huge(load, loras) -> None:
    """torch.load builds a tensor of any shape on one number; reading it would fill the memory."""
    module = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    huge = {f"{module}.lora_{side}.weight": torch.ones(1).expand(10**6, 10**6) for side in ("up", "down")}
    torch.save(huge, loras / "huge.pt")
    assert "without the numbers of its shape" in _refused(load, "huge.pt")


def test_a_bias_that_the_model_does_not_have(load, loras) -> None:
    save_file({f"transformer.{TO_Q}.diff_b": torch.ones(128)}, loras / "bias.safetensors")
    assert "which this model does not have" in _refused(load, "bias.safetensors")


def test_half_a_pair_of_matrices(load, loras) -> None:
    folder = write_lora(loras.parent, "half")
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[f"base_model.model.{TO_Q}.lora_B.weight"]
    save_file(weights, folder / "adapter_model.safetensors")
    assert f"no lora_B for base_model.model.{TO_Q}" in _refused(load, "half")


def test_peft_folders_are_offered_by_name(rlg, loras) -> None:
    write_lora(loras.parent, "SD3.5M-FlowGRPO-GenEval")
    write_lora(loras.parent, "offered/inner")
    loader = rlg.nodes["RLGLoadLora"]
    options = loader.INPUT_TYPES()["required"]["lora_name"][1]["options"]
    assert {"SD3.5M-FlowGRPO-GenEval", str(Path("offered/inner"))} <= set(options)
    assert len(options) == len(set(options))


def test_a_link_that_leads_nowhere_is_offered_and_refused(rlg, load, loras) -> None:
    """As into a cache that was cleared. The host lists such files; the loaders went missing, all of them."""
    folder = loras / "cleared"
    folder.mkdir()
    (folder / "adapter_model.safetensors").symlink_to(loras / "gone.safetensors")
    name = str(Path("cleared/adapter_model.safetensors"))
    assert name in rlg.nodes["RLGLoadLora"].INPUT_TYPES()["required"]["lora_name"][1]["options"]
    assert "is not in models/loras" in _refused(load, name)


def test_an_adapter_is_offered_once_and_its_file_can_still_be_named(rlg, load, loras) -> None:
    """As workflows do that were saved when the list had both; the host asks the node in place of its list."""
    write_lora(loras.parent, "SD3.5M-FlowGRPO-GenEval")
    loader = rlg.nodes["RLGLoadLora"]
    file = str(Path("SD3.5M-FlowGRPO-GenEval/adapter_model.safetensors"))
    assert file not in loader.INPUT_TYPES()["required"]["lora_name"][1]["options"]
    for node in (loader, rlg.nodes["RLGLoadModels"]):
        assert node.validate_inputs(lora_name=file) is True
        assert node.validate_inputs() is True  # its name comes from another node
        assert "'absent' is not in models/loras" in node.validate_inputs(lora_name="absent")
    by_folder, by_file = load("SD3.5M-FlowGRPO-GenEval")[0], load(file)[0]
    assert torch.equal(change(by_file), change(by_folder))


class _Text(comfy_io.ComfyNode):
    """A node of another pack that gives a text and a number."""

    @classmethod
    def define_schema(cls) -> comfy_io.Schema:
        outputs = [comfy_io.String.Output(), comfy_io.Int.Output(), comfy_io.Model.Output()]
        return comfy_io.Schema("_Text", outputs=outputs)

    @classmethod
    def execute(cls) -> comfy_io.NodeOutput:
        return comfy_io.NodeOutput("linked", 1, None)


@pytest.mark.parametrize(
    ("node", "inputs", "refused"),
    [
        ("RLGLoadLora", {}, ""),
        ("RLGLoadModels", {"ckpt_name": "lora-files.safetensors"}, ""),
        ("RLGLoadLora", {"lora_name": "linked"}, ""),
        ("RLGLoadLora", {"lora_name": "absent"}, "lora_name: 'absent' is not in models/loras"),
        (
            "RLGLoadLora",
            {"lora_name": ["1", 1]},
            "lora_name: it takes COMBO or STRING and gets INT; connect another output.",
        ),
        ("RLGLoadLora", {"model": ["1", 0]}, "model: it takes MODEL and gets STRING; connect another output."),
        ("RLGLoadLora", {"strength": ["1", 0]}, "strength: it takes FLOAT and gets STRING; connect another output."),
        (
            "RLGLoadModels",
            {"ckpt_name": ["1", 0]},
            "ckpt_name: it takes COMBO and gets STRING; connect another output.",
        ),
    ],
)
def test_the_host_takes_a_linked_text_for_the_name(rlg, model, loras, monkeypatch, node, inputs, refused) -> None:
    """As RLG Train LoRA gives it; other links are still of their own type."""
    write_lora(loras.parent, "linked")
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "_Text", _Text)
    rest = {"RLGLoadLora": {"model": ["1", 2], "strength": 1.0}, "RLGLoadModels": {"lora_strength": 1.0}}[node]
    prompt = {
        "1": {"class_type": "_Text", "inputs": {}},
        "2": {"class_type": node, "inputs": {"lora_name": ["1", 0], **rest, **inputs}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    valid, _, _, errors = asyncio.run(execution.validate_prompt("linked", prompt, None))
    said = [error["details"] for error in errors.get("2", {"errors": ()})["errors"]]
    assert valid == (not refused) and any(refused in details for details in said) == bool(refused), said


# The scale rule itself, against PEFT.


_NAME = st.text("ab.0", min_size=1, max_size=6)
_PATTERN = st.lists(
    st.sampled_from(["a", "b", "0", r"\.", ".", ".*", r"\d+", "(a|b)", "[ab]", "a?", "^", "|"]), max_size=5
)


@given(patterns=st.lists(_PATTERN.map("".join), max_size=3, unique=True), name=_NAME)
def test_patterns_match_as_pefts(patterns: list[str], name: str) -> None:
    other = pytest.importorskip("peft.utils.other")
    values = {pattern: number for number, pattern in enumerate(patterns)}
    assert name_patterns.NamePatterns(values).value(name, None) == values.get(other.get_pattern_key(values, name))


@settings(max_examples=30)
@given(r=st.integers(1, 64), alpha=st.floats(0.01, 1000), rslora=st.booleans())
def test_scale_is_pefts(r: int, alpha: float, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=["to_q", "to_k"],
        alpha_pattern={"to_q": 3 * alpha},
        rank_pattern={"to_k": r + 1},
    )
    network = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("to_q", "to_k")})
    adapted = peft.get_peft_model(network, config).base_model.model
    saved = json.loads(json.dumps(config.to_dict(), default=list))
    ours = peft_config.PeftConfig.from_dict(saved, "config")
    for name, module in adapted.items():
        assert ours.rank(name) == module.r["default"]
        assert math.isclose(ours.scale(name, module.r["default"]), module.scaling["default"], rel_tol=1e-9)
