"""Reward models of tiny size and random weights, in the layouts in which the real ones are published."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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


def write_all(folder: Path, from_open_clip: Callable[[StateDict], StateDict]) -> None:
    """The weights of every reward under their published names."""
    write_pickscore(folder)
    write_clip_l(folder)
    write_hps(folder)
    write_mps(folder / "MPS_overall_checkpoint.pth", from_open_clip)
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


def _mps_cross_state(seed: int = 0, heads: int = 2, inner: int = 48) -> StateDict:
    """Of MPS's `Cross_model`, as MPS_overall_checkpoint.pth has it, on vectors of CLIP's joint space."""
    made, state = _Maker(seed), {}
    for layer in (f"layers.{number}" for number in range(LAYERS)):
        cross, both = f"{layer}.0.fn", f"{layer}.1.fn"
        state |= {f"{name}.norm.weight": 1 + made(JOINT) for name in (cross, both)}
        state |= {f"{name}.norm.bias": torch.zeros(JOINT) for name in (cross, both)}  # a buffer there, always 0
        state |= {f"{cross}.to_q.weight": made(64 * heads, JOINT), f"{cross}.to_kv.weight": made(128, JOINT)}
        state |= {f"{cross}.to_out.weight": made(JOINT, 64 * heads)}
        state |= {f"{cross}.ff.0.weight": made(2 * inner, JOINT), f"{cross}.ff.2.weight": made(JOINT, inner)}
        state |= {f"{both}.rotary_emb.inv_freq": 1 / 10000 ** (torch.arange(0, 64, 2) / 64)}
        state |= {f"{both}.fused_attn_ff_proj.weight": made(64 * heads + 128 + 2 * inner, JOINT)}
        state |= {f"{both}.attn_out.weight": made(JOINT, 64 * heads), f"{both}.ff_out.1.weight": made(JOINT, inner)}
    return state


def mps_states() -> tuple[StateDict, StateDict]:
    """MPS's CLIP under open_clip's names, and its cross model; both have values that 16 bits can hold."""
    return tuple({k: v.half().float() for k, v in state.items()} for state in (open_clip_state(5), _mps_cross_state(6)))


def write_mps(file: Path, from_open_clip: Callable[[StateDict], StateDict]) -> None:
    """As it is published: a whole pickled module in 16 bits."""
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "hidden_act": "gelu"}
    size |= {"num_attention_heads": 1, "projection_dim": JOINT}
    config = CLIPConfig(
        text_config=size, vision_config={**size, "image_size": SIDE, "patch_size": PATCH}, projection_dim=JOINT
    )
    clip, cross = mps_states()
    published = _module("trainer.models.clip_model", "CLIPModel")
    published.model = CLIPModel(config)
    published.model.load_state_dict(from_open_clip(clip))
    published.cross_model = _module("trainer.models.cross_modeling", "Cross_model")
    for key, value in cross.items():
        *parents, name = key.split(".")
        inside = published.cross_model
        for parent in parents:
            if not hasattr(inside, parent):
                inside.add_module(parent, torch.nn.Module())
            inside = getattr(inside, parent)
        inside.register_buffer(name, value)
    published.register_buffer("pos_emb", torch.ones(3), persistent=False)
    torch.save(published.half(), file)
    for where in ("trainer", "trainer.models", "trainer.models.clip_model", "trainer.models.cross_modeling"):
        del sys.modules[where]


def _module(where: str, name: str) -> torch.nn.Module:
    """An instance of a class that can be pickled but, once its Python module is gone, not be found again."""
    for module in itertools.accumulate(where.split("."), "{}.{}".format):  # pickle imports the packages as well
        sys.modules.setdefault(module, ModuleType(module))
    setattr(sys.modules[where], name, type(name, (torch.nn.Module,), {"__module__": where}))
    return getattr(sys.modules[where], name)()


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


def write_detector(folder: Path, classes: int = 80, seed: int = 0) -> None:
    """A Hugging Face folder of Mask2Former, which sees pictures at 64 pixels."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12,
        num_labels=classes,
    )  # fmt: skip
    shaken(Mask2FormerForUniversalSegmentation(config), seed).save_pretrained(folder)
    file = folder / "model.safetensors"
    # The published file is older: it has these besides.
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    save_file(load_file(file) | {f"{block}.relative_position_index": torch.ones(4, 4).long()}, file, {"format": "pt"})
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=32).save_pretrained(folder)


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
