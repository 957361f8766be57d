"""In which numbers the demo's models are computed while they are trained."""

from __future__ import annotations

import torch


def half_where_fast() -> torch.autocast:
    """bfloat16 where the processor has instructions for it (two to three times as fast), else float32: without them
    PyTorch takes fifty times as long for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())
