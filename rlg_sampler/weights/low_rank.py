"""A change of a weight as products of small matrices, added to what the weight's module gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# On Apple GPUs torch's addmm into a strided view fails or writes nothing (its issues 187255 and 193385).
WRITE_INTO_A_VIEW = ("cpu", "cuda")


@dataclass(frozen=True)
class LowRank:
    """Rows `start:stop` of the weight change by `up @ down`, for each `up` with the rows of `down` that are its own.

    A fused weight (SD3's qkv) has an `up` for each of its parts. One block-structured matrix for all would be one
    product instead of three, of three times the numbers, two thirds of them zeros.

    Attributes:
        down: shape (sum of ranks, in_features); for a convolution in_features are the numbers under its kernel,
            in · height · width.
        ups: ((start, stop), matrix of shape (stop - start, rank)) in the order of `down`'s rows.
    """

    down: torch.Tensor
    ups: tuple[tuple[tuple[int, int], torch.Tensor], ...]

    @classmethod
    def of(cls, terms: Iterable[tuple[tuple[int, int], torch.Tensor, torch.Tensor]]) -> LowRank:
        """Sum up (rows of the weight, up, down); what several terms add to the same rows is one product."""
        by_rows: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for rows, up, down in terms:
            by_rows.setdefault(rows, []).append((up, down))
        down = _joined([down for pairs in by_rows.values() for _, down in pairs], dim=0)
        # A matrix that is alone stays the file's own: no memory for a copy of it.
        ups = {r: p[0][0] if len(p) == 1 else _joined([up for up, _ in p], dim=1) for r, p in by_rows.items()}
        return cls(down, tuple(ups.items()))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LowRank:
        return LowRank(self.down.to(device, dtype), tuple((rows, up.to(device, dtype)) for rows, up in self.ups))

    def add(self, module: torch.nn.Module, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add the change to `out` = module(x), in place."""
        down, ranks = self.down.to(x.dtype), [up.shape[1] for _, up in self.ups]
        if is_conv(module):
            # A convolution's own forward knows its stride, padding and padding mode.
            hidden = module._conv_forward(x, down.view(-1, *module.weight.shape[1:]), None).to(out.dtype)
            for ((start, stop), up), own in zip(self.ups, hidden.split(ranks, dim=1), strict=True):
                out[:, start:stop] += torch.einsum("or,br...->bo...", up.to(out.dtype), own)
            return
        hidden = F.linear(x, down).to(out.dtype)
        fused = out.is_contiguous() and out.device.type in WRITE_INTO_A_VIEW
        for ((start, stop), up), own in zip(self.ups, hidden.split(ranks, dim=-1), strict=True):
            if fused:
                # One fused multiply-add instead of a product and a second pass over the output.
                rows = out.view(-1, out.shape[-1])[:, start:stop]
                rows.addmm_(own.reshape(-1, own.shape[-1]), up.to(out.dtype).t())
            else:
                # Before torch 2.8 Apple's products were unsafe with a part of a tensor.
                out[..., start:stop] += F.linear(own.contiguous(), up.to(out.dtype))


def _joined(matrices: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Of several files, which may have several dtypes: torch finds none for float8 and another one."""
    if len({matrix.dtype for matrix in matrices}) > 1:
        matrices = [matrix.float() for matrix in matrices]
    return torch.cat(list(matrices), dim)


def is_conv(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)
