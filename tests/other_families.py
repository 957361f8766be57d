"""Families of models beside those of `pairs`, as far as the host at hand knows them: tiny ones of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.supported_models
import torch

from pairs import FAMILIES, SIZE, Family

_TOKENS = 8  # of a prompt, see Family.task


@dataclass(frozen=True)
class OtherFamily(Family):
    """A family whose prompts carry more than text.

    Attributes:
        more: makes what a prompt carries beside its text, from random numbers.
    """

    more: Callable[[torch.Generator], dict[str, Any]] = lambda _: {}

    def task(self, **changes: Any) -> dict[str, Any]:
        inputs = super().task()
        generator = torch.Generator().manual_seed(4)
        for name in ("positive", "negative"):
            ((_, extra),) = inputs[name]
            extra.update(self.more(generator))
        return {**inputs, **changes}


def _mask(dtype: torch.dtype = torch.float32) -> Callable[[torch.Generator], dict[str, Any]]:
    return lambda _: {"attention_mask": torch.ones(1, _TOKENS, dtype=dtype)}


def _reference(*shape: int) -> Callable[[torch.Generator], dict[str, Any]]:
    """A picture that is edited."""
    return lambda generator: {"reference_latents": [torch.randn(1, *shape, generator=generator)]}


def _beside(*shape: int, mask: tuple[int, ...] = ()) -> Callable[[torch.Generator], dict[str, Any]]:
    """A picture in channels of its own: the same for both sides of CFG, as the nodes that make it do."""
    picture = torch.randn(1, *shape, generator=torch.Generator().manual_seed(5))
    masked = {"concat_mask": torch.ones(1, *mask)} if mask else {}
    return lambda _: {"concat_latent_image": picture, **masked}


_FLUX = {
    "in_channels": 16, "out_channels": 16, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
    "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip
_CHROMA = {**_FLUX, "image_model": "chroma", "in_dim": 64, "out_dim": 128, "hidden_dim": 96, "n_layers": 1}
_LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": 64, "n_layers": 2,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 1, "n_kv_heads": 1, "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 32,
}  # fmt: skip
_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 48,
    "axes_dim": [16, 56, 56], "meanflow": False, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0,
    "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "theta": 256, "qkv_bias": True, "byt5": False,
    "guidance_embed": True, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_HUNYUAN_IMAGE = {
    **_HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [64, 64], "vec_in_dim": None,
}  # fmt: skip
_COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 128, "concat_padding_mask": True,
    "crossattn_emb_channels": 64, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop",
    "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 32, "num_blocks": 1, "num_heads": 1,
    "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False,
}  # fmt: skip
_OMNIGEN = {
    "image_model": "omnigen2", "axes_dim_rope": [32, 32, 32], "axes_lens": [300, 512, 512], "hidden_size": 96,
    "multiple_of": 32, "num_attention_heads": 1, "num_kv_heads": 1, "num_layers": 1, "num_refiner_layers": 1,
    "text_feat_dim": 64, "timestep_scale": 1000.0,
}  # fmt: skip
_WAN = FAMILIES["Wan"].unet_config
_SD15 = FAMILIES["SD1.5"].unet_config
_S = SIZE

_ALL = {
    "Z-Image": OtherFamily(
        "ZImage",
        {
            **_LUMINA, "dim": 256, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "rope_theta": 256.0,
            "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
        },
        (16, _S, _S),
        text=64,
    ),
    "Lumina 2": OtherFamily("Lumina2", _LUMINA, (16, _S, _S), text=64, more=_mask(torch.long)),
    "Chroma": OtherFamily(
        "Chroma", {**_CHROMA, "in_channels": 64, "out_channels": 64}, (16, _S, _S), text=64, pooled=48
    ),
    "Chroma Radiance": OtherFamily(
        "ChromaRadiance",
        {
            **_CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16,
            "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512,
            "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": True,
            "use_sequential_txt_ids": False,
        },
        (3, 64, 64),
        text=64, pooled=48,
    ),
    "FLUX.2": OtherFamily(
        "Flux2",
        {
            **_FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1,
            "axes_dim": [32, 32, 32, 32], "mlp_ratio": 3.0, "theta": 2000, "global_modulation": True,
            "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "default_ref_method": "index",
            "ref_index_scale": 10.0, "txt_ids_dims": [3], "guidance_embed": True,
        },
        (128, 8, 8),
        text=64, pooled=48,
    ),
    "FLUX.1 Kontext": OtherFamily(
        "Flux",
        {**_FLUX, "image_model": "flux", "vec_in_dim": 48, "guidance_embed": True},
        (16, _S, _S),
        text=64,
        pooled=48,
        more=_reference(16, _S, _S),
    ),
    "FLUX.1 Fill": OtherFamily(
        "FluxInpaint",
        {**_FLUX, "image_model": "flux", "in_channels": 96, "vec_in_dim": 48, "guidance_embed": True},
        (16, _S, _S),
        text=64,
        pooled=48,
        more=_beside(16, _S, _S, mask=(1, 8 * _S, 8 * _S)),
    ),
    "Qwen-Image-Edit": OtherFamily(
        "QwenImage", FAMILIES["Qwen-Image"].unet_config, (16, 1, _S, _S), text=64, more=_reference(16, 1, _S, _S)
    ),
    "HiDream-I1": OtherFamily(
        "HiDream",
        {
            "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32],
            "caption_channels": [64, 64], "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 1],
            "num_attention_heads": 1, "num_routed_experts": 4, "num_activated_experts": 2, "num_layers": 1,
            "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 48,
        },
        (16, _S, _S),
        text=64,
        pooled=48,
        more=lambda generator: {"conditioning_llama3": torch.randn(1, 2, _TOKENS, 64, generator=generator)},
    ),
    "HunyuanImage 2.1": OtherFamily(
        "HunyuanImage21",
        {**_HUNYUAN_IMAGE, "byt5": True},
        (64, 8, 8),
        text=64,
        more=lambda generator: {"conditioning_byt5small": torch.randn(1, 5, 1472, generator=generator)},
    ),
    "HunyuanVideo": OtherFamily("HunyuanVideo", _HUNYUAN, (16, 2, _S, _S), text=64, pooled=48),
    "HunyuanVideo 1.5": OtherFamily(
        "HunyuanVideo15",
        {
            **_HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
            "guidance_embed": False, "use_cond_type_embedding": True,
        },
        (32, 2, 8, 8),
        text=64,
        pooled=48,
    ),
    "AuraFlow": OtherFamily(
        "AuraFlow",
        {
            "dim": 128, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "global_conddim": 128, "cond_seq_dim": 64,
            "max_seq": 256,
        },
        (4, _S, _S),
        text=64,
    ),
    "HunyuanDiT": OtherFamily(
        "HunyuanDiT1",
        {
            "image_model": "hydit1", "depth": 2, "hidden_size": 64, "num_heads": 1, "text_states_dim": 64,
            "text_states_dim_t5": 48, "size_cond": True, "use_style_cond": True, "text_len": _TOKENS,
            "text_len_t5": _TOKENS,
        },
        (4, _S, _S),
        text=64,
        more=lambda generator: {
            "attention_mask": torch.ones(1, _TOKENS),
            "conditioning_mt5xl": torch.randn(1, _TOKENS, 48, generator=generator),
            "attention_mask_mt5xl": torch.ones(1, _TOKENS),
        },
    ),
    "Cosmos Predict2": OtherFamily("CosmosT2IPredict2", _COSMOS, (16, 1, _S, _S), text=64),
    "Anima": OtherFamily(
        "Anima",
        {**_COSMOS, "image_model": "anima", "crossattn_emb_channels": 1024},
        (16, 1, _S, _S),
        text=1024,
        more=lambda generator: {
            "t5xxl_ids": torch.randint(0, 1000, (_TOKENS,), generator=generator),
            "t5xxl_weights": torch.ones(_TOKENS),
        },
    ),
    "OmniGen2": OtherFamily("Omnigen2", _OMNIGEN, (16, _S, _S), text=64, more=_mask(torch.long)),
    "Kandinsky 5 Image": OtherFamily(
        "Kandinsky5Image",
        {
            "image_model": "kandinsky5", "model_dim": 128, "time_dim": 64, "ff_dim": 128, "visual_embed_dim": 64,
            "num_text_blocks": 1, "num_visual_blocks": 1, "in_text_dim": 64, "in_text_dim2": 48,
            "axes_dims": (32, 48, 48), "rope_scale_factor": (1.0, 1.0, 1.0),
        },
        (16, 1, _S, _S),
        text=64,
        pooled=48,
    ),
    "LongCat-Image": OtherFamily(
        "LongCatImage",
        {**_FLUX, "image_model": "flux", "guidance_embed": False, "txt_ids_dims": [1, 2]},
        (16, _S, _S),
        text=64,
    ),
    "ERNIE-Image": OtherFamily(
        "ErnieImage",
        {
            "image_model": "ernie", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 1,
            "ffn_hidden_size": 128, "text_in_dim": 64,
        },
        (128, 8, 8),
        text=64,
    ),
    "MageFlow": OtherFamily(
        "MageFlow",
        {
            "image_model": "mage_flow", "in_channels": 128, "num_layers": 1, "num_attention_heads": 1,
            "joint_attention_dim": 64,
        },
        (128, 8, 8),
        text=64,
    ),
    "JoyImage": OtherFamily(
        "JoyImage",
        {
            "image_model": "joyimage", "in_channels": 16, "hidden_size": 128, "num_layers": 1,
            "num_attention_heads": 1, "text_dim": 64, "patch_size": [1, 2, 2],
        },
        (16, 1, _S, _S),
        text=64,
    ),
    "Krea 2": OtherFamily(
        "Krea2",
        {
            "image_model": "krea2", "features": 128, "channels": 16, "patch": 2, "layers": 1, "heads": 1, "kvheads": 1,
            "txtlayers": 1, "txtdim": 64, "txtheads": 1, "txtkvheads": 1, "multiplier": 2,
        },
        (16, 1, _S, _S),
        text=64,
    ),
    "Boogu": OtherFamily(
        "Boogu",
        {
            "image_model": "boogu", "hidden_size": 120, "num_layers": 1, "num_double_stream_layers": 1,
            "num_refiner_layers": 1, "num_attention_heads": 1, "num_kv_heads": 1, "multiple_of": 32,
            "instruction_feat_dim": 64,
        },
        (16, _S, _S),
        text=64,
        more=_mask(torch.long),
    ),
    "PixelDiT": OtherFamily(
        "PixelDiTT2I",
        {
            "image_model": "pixeldit_t2i", "num_groups": 1, "hidden_size": 64, "pixel_hidden_size": 16,
            "pixel_attn_hidden_size": 64, "pixel_num_groups": 1, "patch_depth": 1, "pixel_depth": 1,
            "txt_embed_dim": 64,
        },
        (3, 64, 64),
        text=64,
    ),
    "InstructPix2Pix": OtherFamily(
        "SD15_instructpix2pix", {**_SD15, "in_channels": 8}, (4, _S, _S), text=32, more=_beside(4, _S, _S)
    ),
    "Stable Cascade": OtherFamily(
        "Stable_Cascade_C",
        {
            "stable_cascade_stage": "c", "c_cond": 64, "c_hidden": [64, 64], "nhead": [1, 1],
            "blocks": [[1, 1], [1, 1]], "c_clip_text": 64, "c_clip_text_pooled": 64, "c_clip_img": 768,
        },
        (16, 8, 8),
        text=64,
        pooled=64,
    ),
    "Wan image to video": OtherFamily(
        "WAN21_I2V",
        {**_WAN, "model_type": "i2v", "in_dim": 36},
        (16, 2, _S, _S),
        text=64,
        more=_beside(16, 2, _S, _S, mask=(1, 2, _S, _S)),
    ),
    "Wan VACE": OtherFamily(
        "WAN21_Vace",
        {**_WAN, "model_type": "vace", "vace_in_dim": 96, "vace_layers": 1, "num_layers": 2},
        (16, 2, _S, _S),
        text=64,
    ),
    "LTX-Video": OtherFamily(
        "LTXV",
        {
            "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 128, "attention_head_dim": 64,
            "num_attention_heads": 2, "caption_channels": 64, "num_layers": 1,
        },
        (128, 2, 4, 4),
        text=64,
        more=_mask(torch.long),
    ),
    "CogVideoX": OtherFamily(
        "CogVideoX_T2V",
        {
            "image_model": "cogvideox", "num_attention_heads": 1, "attention_head_dim": 64, "time_embed_dim": 32,
            "num_layers": 1, "in_channels": 16, "patch_size": 2, "text_embed_dim": 64,
            "use_learned_positional_embeddings": False, "use_rotary_positional_embeddings": True,
        },
        (16, 2, _S, _S),
        text=64,
    ),
    "ACE-Step": OtherFamily(
        "ACEStep",
        {
            "audio_model": "ace", "attention_head_dim": 64, "in_channels": 8, "inner_dim": 64, "max_height": 16,
            "max_position": 32768, "max_width": 32768, "mlp_ratio": 2.5, "num_attention_heads": 1, "num_layers": 1,
            "out_channels": 8, "patch_size": [16, 1], "rope_theta": 1000000.0, "speaker_embedding_dim": 512,
            "text_embedding_dim": 64, "ssl_encoder_depths": [8, 8], "ssl_latent_dims": [1024, 768],
            "ssl_names": ["mert", "m-hubert"], "lyric_encoder_vocab_size": 693, "lyric_hidden_size": 1024,
        },
        (8, 16, 12),
        text=64,
        more=lambda generator: {"conditioning_lyrics": torch.randint(0, 600, (1, 10), generator=generator)},
    ),
}  # fmt: skip
OTHER_FAMILIES = {name: family for name, family in _ALL.items() if hasattr(comfy.supported_models, family.config)}
"""By the names that people know them by."""
