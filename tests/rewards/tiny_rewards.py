"""Reward models of tiny size and random weights, in the layouts in which the real ones are published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH, JOINT, SIDE, PATCH, LAYERS, WORDS = 64, 32, 28, 14, 2, 49408
StateDict = dict[str, Tensor]


def write_clip(folder: Path, seed: int = 0, activation: str = "gelu") -> None:
    """A Hugging Face folder."""
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "hidden_act": activation}
    config = CLIPConfig(
        text_config={**size, "num_attention_heads": 2, "eos_token_id": 49407, "projection_dim": JOINT},
        vision_config={
            **size, "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "projection_dim": JOINT,
        },
        projection_dim=JOINT,
    )  # fmt: skip
    shaken(CLIPModel(config), seed).save_pretrained(folder)
    file = folder / "model.safetensors"
    # The published files are older: they have these besides.
    old = {f"{tower}_model.embeddings.position_ids": torch.arange(3)[None] for tower in ("text", "vision")}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})


def write_all(folder: Path) -> None:
    """The weights of every reward under their published names."""
    write_pickscore(folder)
    write_clip_l(folder)
    write_hps(folder)
    torch.save(image_reward_state(), folder / "ImageReward.pt")
    write_vocabulary(folder / "vocab.txt")
    torch.save(head_state(JOINT), folder / "sac+logos+ava1-l14-linearMSE.pth")


def write_pickscore(folder: Path) -> None:
    write_clip(folder / "PickScore_v1", seed=1)


def write_clip_l(folder: Path) -> None:
    write_clip(folder / "clip-vit-large-patch14", seed=2, activation="quick_gelu")


def write_hps(folder: Path) -> None:
    torch.save({"epoch": 3, "state_dict": open_clip_state(3)}, folder / "HPS_v2.1_compressed.pt")


def shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every weight random, biases and norms too, and large enough for them all to show in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def open_clip_state(seed: int = 0, width: int = WIDTH) -> StateDict:
    """As `open_clip.create_model(...).state_dict()` has them; `width` of the image tower."""
    made = _Maker(seed)
    state = {
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": made(width),
        "visual.positional_embedding": made((SIDE // PATCH) ** 2 + 1, width),
        "visual.conv1.weight": made(width, 3, PATCH, PATCH),
        "visual.proj": made(width, JOINT),
        "token_embedding.weight": made(WORDS, WIDTH),
        "positional_embedding": made(77, WIDTH),
        "text_projection": made(WIDTH, JOINT),
        **made.norm("visual.ln_pre", width),
        **made.norm("visual.ln_post", width),
        **made.norm("ln_final", WIDTH),
    }
    for prefix, w in (("visual.transformer", width), ("transformer", WIDTH)):
        for block in (f"{prefix}.resblocks.{number}" for number in range(LAYERS)):
            state |= made.norm(f"{block}.ln_1", w) | made.norm(f"{block}.ln_2", w)
            state |= {f"{block}.attn.in_proj_weight": made(3 * w, w), f"{block}.attn.in_proj_bias": made(3 * w)}
            state |= made.linear(f"{block}.attn.out_proj", w, w)
            state |= made.linear(f"{block}.mlp.c_fc", w, 2 * w) | made.linear(f"{block}.mlp.c_proj", 2 * w, w)
    return state


def image_reward_state(seed: int = 0, words: int = 64) -> StateDict:
    """As ImageReward.pt has them."""
    made = _Maker(seed)
    eyes, mind = "blip.visual_encoder", "blip.text_encoder"
    state = {
        f"{eyes}.cls_token": made(1, 1, WIDTH),
        f"{eyes}.pos_embed": made(1, (SIDE // PATCH) ** 2 + 1, WIDTH),
        f"{eyes}.patch_embed.proj.weight": made(WIDTH, 3, PATCH, PATCH),
        f"{eyes}.patch_embed.proj.bias": made(WIDTH),
        f"{mind}.embeddings.word_embeddings.weight": made(words, WIDTH),
        f"{mind}.embeddings.position_embeddings.weight": made(40, WIDTH),
        f"{mind}.embeddings.position_ids": torch.arange(40)[None],
        **made.norm(f"{eyes}.norm", WIDTH),
        **made.norm(f"{mind}.embeddings.LayerNorm", WIDTH),
        **made.linear("blip.vision_proj", WIDTH, 16),
        **made.linear("blip.text_proj", WIDTH, 16),
        **{f"mlp.{key}": value for key, value in head_state(WIDTH, seed + 1).items()},
    }
    for block in (f"{eyes}.blocks.{number}" for number in range(LAYERS)):
        state |= made.norm(f"{block}.norm1", WIDTH) | made.norm(f"{block}.norm2", WIDTH)
        state |= made.linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH) | made.linear(f"{block}.attn.proj", WIDTH, WIDTH)
        state |= made.linear(f"{block}.mlp.fc1", WIDTH, 2 * WIDTH) | made.linear(f"{block}.mlp.fc2", 2 * WIDTH, WIDTH)
    for layer in (f"{mind}.encoder.layer.{number}" for number in range(LAYERS)):
        for kind in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                state |= made.linear(f"{layer}.{kind}.self.{part}", WIDTH, WIDTH)
            state |= made.linear(f"{layer}.{kind}.output.dense", WIDTH, WIDTH)
            state |= made.norm(f"{layer}.{kind}.output.LayerNorm", WIDTH)
        state |= made.linear(f"{layer}.intermediate.dense", WIDTH, 2 * WIDTH)
        state |= made.linear(f"{layer}.output.dense", 2 * WIDTH, WIDTH)
        state |= made.norm(f"{layer}.output.LayerNorm", WIDTH)
    return state


def head_state(width: int, seed: int = 0) -> StateDict:
    """The linear head of the aesthetic predictor and of ImageReward."""
    made = _Maker(seed)
    sizes = {0: (width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    return {k: v for number, size in sizes.items() for k, v in made.linear(f"layers.{number}", *size).items()}


def write_vocabulary(file: Path) -> list[str]:
    """A vocabulary of BERT with a few words, each of which it reads as itself."""
    words = ["red", "blue", "cat", "dog", "a", "on", "the", "mat"]
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n", encoding="utf-8")
    return words


def write_dinov2(folder: Path, seed: int = 0) -> None:
    """A Hugging Face folder."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28)
    shaken(Dinov2Model(config), seed).save_pretrained(folder)


def write_other_model(folder: Path) -> None:
    """A folder of Hugging Face that is no image model at all."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))


class _Maker:
    """Random weights that keep activations near 1."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        fan_in = max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 25
        return torch.randn(shape, generator=self._generator) / fan_in**0.5

    def linear(self, name: str, inputs: int, outputs: int) -> StateDict:
        return {f"{name}.weight": self(outputs, inputs), f"{name}.bias": self(outputs)}

    def norm(self, name: str, width: int) -> StateDict:
        return {f"{name}.weight": 1 + self(width), f"{name}.bias": self(width)}
