"""A LoRA taken from a fully tuned model is that model, as far as its rank reaches, in our loader and in the host's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from pairs import CLOSE, load_checkpoint, relative, task, write_model

TRUE_RANK = 3


@pytest.fixture(scope="module")
def files(models_dir: Path) -> SimpleNamespace:
    """A base and a tuned checkpoint that differ by three ranks in linear layers, in biases, and in one norm."""
    base = write_model(models_dir, "extraction-base")
    generator = torch.Generator().manual_seed(4)
    weights = load_file(base)
    for key in [k for k in weights if re.search(r"(qkv|fc1|proj)\.(weight|bias)$", k) and "embedder" not in k]:
        shape = weights[key].shape
        if key.endswith("bias"):
            weights[key] = weights[key] + 0.02 * torch.randn(shape, generator=generator)
            continue
        left, right = (torch.randn(n, TRUE_RANK, generator=generator) for n in shape)
        weights[key] = weights[key] + 0.1 * left @ right.t() / shape[1] ** 0.5
    tuned = base.with_name("extraction-tuned.safetensors")
    save_file(weights, tuned)
    norm = "model.diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight"
    with_norm = base.with_name("extraction-norm.safetensors")
    save_file({**weights, norm: weights[norm] * 1.1}, with_norm)
    return SimpleNamespace(base=base, tuned=tuned, with_norm=with_norm)


@pytest.fixture
def extract(run_node: Callable, models_dir: Path, tmp_path: Path) -> Callable[..., tuple[str, list[Path]]]:
    """The node's report, and what it wrote."""

    def run(base: Any, tuned: Any, rank: int, prefix: str = "loras/taken") -> tuple[str, list[Path]]:
        before = folder_paths.get_output_directory()
        folder_paths.set_output_directory(str(tmp_path))
        try:
            (report,) = run_node("RLGExtractLora", base=base, tuned=tuned, rank=rank, filename_prefix=prefix)
        finally:
            folder_paths.set_output_directory(before)
        return report, sorted(path for path in tmp_path.rglob("*") if path.is_file())

    return run


def _sample(run_node: Callable, **models: Any) -> torch.Tensor:
    return run_node("RLGKSampler", **models, scale=1.6, **task(steps=3))[0]["samples"]


def test_enough_rank_gives_the_pair_of_checkpoints(files, extract, run_node, models_dir) -> None:
    base, tuned = load_checkpoint(files.base), load_checkpoint(files.tuned)
    report, (file,) = extract(base, tuned, rank=8)
    assert file.name in report and "100.00%" in report and "left out" not in report and "approximation" in report
    name = file.replace(models_dir / "loras" / "taken.safetensors").name
    assert max(w.shape[0] for k, w in load_file(models_dir / "loras" / name).items() if "lora_down" in k) == TRUE_RANK
    exact = _sample(run_node, base=base, tuned=tuned)
    ours, said = run_node("RLGLoadLora", model=base, lora_name=name, strength=1.0)
    assert "nothing left out" in said
    assert relative(_sample(run_node, base=base, tuned=ours), exact) < 10 * CLOSE
    (stock,) = run_node("LoraLoaderModelOnly", model=base, lora_name=name, strength_model=1.0)
    alone = [run_node("KSampler", model=m, **task(steps=3))[0]["samples"] for m in (stock, tuned)]
    assert relative(*alone) < 10 * CLOSE


def test_more_rank_is_nearer_and_the_report_says_how_near(files, extract, run_node, models_dir) -> None:
    base, tuned = load_checkpoint(files.base), load_checkpoint(files.tuned)
    exact = _sample(run_node, base=base, tuned=tuned)
    errors, captured = [], []
    for rank in (1, 2, 3):
        report, (file,) = extract(base, tuned, rank=rank)
        captured.append(float(re.search(r"([\d.]+)% of the change", report)[1]))
        name = file.replace(models_dir / "loras" / f"rank-{rank}.safetensors").name
        ours, _ = run_node("RLGLoadLora", model=base, lora_name=name, strength=1.0)
        errors.append(relative(_sample(run_node, base=base, tuned=ours), exact))
    assert errors[0] > errors[1] > errors[2]
    assert captured[0] < captured[1] < captured[2] == 100.0


def test_what_a_lora_cannot_hold_is_named(files, extract) -> None:
    report, _ = extract(load_checkpoint(files.base), load_checkpoint(files.with_norm), rank=4)
    assert "left out" in report and "joint_blocks.0.x_block.attn.ln_q.weight" in report


def test_a_second_file_does_not_replace_the_first(files, extract) -> None:
    base, tuned = load_checkpoint(files.base), load_checkpoint(files.tuned)
    extract(base, tuned, rank=1)
    _, written = extract(base, tuned, rank=1)
    assert len(written) == 2


def test_cancel_leaves_no_file(files, extract, tmp_path) -> None:
    base, tuned = load_checkpoint(files.base), load_checkpoint(files.tuned)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        extract(base, tuned, rank=4)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_models_that_are_no_pair(files, extract) -> None:
    base = load_checkpoint(files.base)
    with pytest.raises(ValueError, match=r"^tuned: .*nothing to guide.*\.$"):
        extract(base, load_checkpoint(files.base), rank=4)
