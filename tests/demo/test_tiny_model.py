"""The model written on the fly is what it claims to be: to the host's loaders, to diffusers and to PEFT."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import pytest
import torch
from peft import PeftConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

import diffusers_rlg
from demo import tiny_model
from demo.tiny_model import TinySD3, mmdit_state_dict, write_checkpoint, write_peft_adapter

CONFIGS = [
    TinySD3(),
    TinySD3(dual_attention_blocks=0),
    TinySD3(dual_attention_blocks=0, qk_norm=False),
    TinySD3(depth=3, dual_attention_blocks=2, pos_embed_max_size=16, seed=5),
]
LEFT_OUT = ("missing", "unexpected", "left over", "leftover")  # how the host says that weights did not find a place
UNREAD = ("add_q_proj", "norm_added_q")  # of the last block, where nobody reads the text's output; so in every SD3
PICTURE = 32  # side of the latent


def name(config: TinySD3) -> str:
    return f"depth{config.depth}-dual{config.dual_attention_blocks}-{'qk' if config.qk_norm else 'plain'}"


def load(path: Path, caplog: pytest.LogCaptureFixture) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) as CheckpointLoaderSimple gets them; fails if the host finds a key too few or too many."""
    with caplog.at_level(logging.DEBUG):
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    complaints = [m for m in caplog.messages if any(word in m.lower() for word in LEFT_OUT)]
    assert not complaints
    return model, clip, vae


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_host_detects_the_model(config: TinySD3, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors", config, with_clip=False)
    model, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_clip=False)

    assert isinstance(model.model, comfy.model_base.SD3)
    detected = model.model.model_config.unet_config
    assert detected["depth"] == config.depth
    assert detected.get("qk_norm") == ("rms" if config.qk_norm else None)
    assert sorted(detected["x_block_self_attn_layers"]) == list(range(config.dual_attention_blocks))
    weights = mmdit_state_dict(config)
    assert set(model.model.diffusion_model.state_dict()) == set(weights)
    assert {key: tensor.dtype for key, tensor in weights.items()} == dict.fromkeys(weights, torch.float32)


@pytest.mark.slow
def test_stock_nodes_make_a_picture(
    run_node: Callable[..., tuple], models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_checkpoint(models_dir / "checkpoints" / "whole.safetensors", TinySD3())
    load(path, caplog)

    model, clip, vae = run_node("CheckpointLoaderSimple", ckpt_name=path.name)
    (latent,) = run_node("EmptySD3LatentImage", width=8 * PICTURE, height=8 * PICTURE, batch_size=1)
    sampling = {"seed": 0, "steps": 10, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}

    def picture(prompt: str) -> torch.Tensor:
        (positive,) = run_node("CLIPTextEncode", clip=clip, text=prompt)
        (negative,) = run_node("CLIPTextEncode", clip=clip, text="")
        (sampled,) = run_node(
            "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **sampling
        )
        assert 2 < sampled["samples"].abs().max() < 16
        return run_node("VAEDecode", vae=vae, samples=sampled)[0]

    fox, lighthouse = picture("a red fox in the snow"), picture("a lighthouse at night, oil painting")

    assert fox.shape == (1, 8 * PICTURE, 8 * PICTURE, 3)
    assert fox.std() > 0.05, "the picture is flat"
    neighbours = (fox[:, :, 1:] - fox[:, :, :-1]).abs().mean()
    assert neighbours < 0.02, "the picture is noise"
    assert (fox - lighthouse).abs().mean() > 0.05, "the prompt does not matter"


def test_vae_gives_back_a_blurred_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors", TinySD3(), with_clip=False)
    _, _, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), output_clip=False)
    ramp = torch.linspace(0.1, 0.9, 128)
    picture = torch.stack([ramp[None, :].expand(128, 128), ramp[:, None].expand(128, 128), torch.full((128, 128), 0.6)])
    picture = picture.permute(1, 2, 0)[None]

    latent = vae.encode(picture)
    again = vae.decode(latent)

    assert latent.shape == (1, 16, 16, 16)
    inside = slice(32, -32)  # the borders fade to grey
    assert (again - picture)[:, inside, inside].abs().max() < 0.05


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@torch.inference_mode(False)
def test_every_parameter_matters(config: TinySD3, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.safetensors", config, with_clip=False, dtype=torch.float32)
    model = diffusers_rlg.load(checkpoint, write_peft_adapter(tmp_path / "adapter", config), config)
    for parameter in model.parameters():
        parameter.requires_grad_()
    random = torch.Generator().manual_seed(0)

    prediction = model(
        hidden_states=torch.randn(1, 16, 16, 16, generator=random),
        timestep=torch.tensor([600.0]),
        encoder_hidden_states=torch.randn(1, 12, config.context_dim, generator=random),
        pooled_projections=torch.randn(1, 2048, generator=random),
        return_dict=False,
    )[0]
    prediction.square().mean().backward()

    assert 1 < prediction.std() < 10
    idle = {key for key, parameter in model.named_parameters() if not parameter.grad.abs().max() > 1e-6}
    text_queries = tuple(f"transformer_blocks.{config.depth - 1}.attn.{module}." for module in UNREAD)
    assert not [key for key in idle if not any(module in key for module in text_queries)]


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_adapter_is_what_peft_writes(config: TinySD3, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"attn.to_q": 2, r".*\.1\.attn\.to_v": 3}, "alpha_pattern": {"attn.to_q": 6.0}}
    folder = write_peft_adapter(tmp_path / "adapter", config, rank=4, alpha=12.0, use_rslora=True, **patterns)
    checkpoint = write_checkpoint(tmp_path / "model.safetensors", config, with_clip=False, dtype=torch.float32)

    model = diffusers_rlg.load(checkpoint, folder, config)
    model.save_pretrained(tmp_path / "by_peft")

    ours, theirs = (
        load_file(folder / "adapter_model.safetensors"),
        load_file(tmp_path / "by_peft/adapter_model.safetensors"),
    )
    assert ours.keys() == theirs.keys() == get_peft_model_state_dict(model).keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(tensor.abs().max() > 0 for tensor in ours.values())
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    read, written = PeftConfig.from_pretrained(str(folder)), PeftConfig.from_pretrained(str(tmp_path / "by_peft"))
    assert (read.r, read.lora_alpha, read.use_rslora) == (4, 12.0, True)
    differing = {key for key, value in written.to_dict().items() if value != read.to_dict()[key]}
    assert differing <= {"peft_version", "base_model_name_or_path"}


def test_dual_attention_is_not_adapted(tmp_path: Path) -> None:
    folder = write_peft_adapter(tmp_path / "adapter", TinySD3(dual_attention_blocks=2))
    keys = load_file(folder / "adapter_model.safetensors")
    assert not [key for key in keys if ".attn2." in key]
    assert not [key for key in keys if "transformer_blocks.1.attn.to_add_out" in key], "the last block writes no text"


def test_same_seed_same_files(tmp_path: Path) -> None:
    def written(folder: str, seed: int) -> list[bytes]:
        config = TinySD3(seed=seed)
        checkpoint = write_checkpoint(tmp_path / folder / "model.safetensors", config, with_clip=False)
        adapter = write_peft_adapter(tmp_path / folder / "adapter", config, seed=seed)
        return [checkpoint.read_bytes(), (adapter / "adapter_model.safetensors").read_bytes()]

    first, again, other = written("first", 0), written("again", 0), written("other", 1)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_configurations_share_weights() -> None:
    dual, single = mmdit_state_dict(TinySD3()), mmdit_state_dict(TinySD3(dual_attention_blocks=0))
    differing = {
        key for key in single if dual[key].shape != single[key].shape or not torch.equal(dual[key], single[key])
    }
    assert differing == {f"joint_blocks.0.x_block.adaLN_modulation.1.{kind}" for kind in ("weight", "bias")}


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: dict, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(tiny_model, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path / "model.safetensors", TinySD3(), with_clip=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [{"depth": 1}, {"dual_attention_blocks": 3}])
def test_impossible_shapes_are_refused(shape: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(shape))):
        TinySD3(**shape)
