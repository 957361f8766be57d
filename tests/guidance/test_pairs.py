"""What is no pair is refused with one sentence that says what to connect instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.samplers
import comfy.sd
import pytest
import torch

from demo.tiny_model import TinySD3
from pairs import (
    CLOSE,
    Counter,
    conds,
    load_checkpoint,
    picture_latent,
    relative,
    task,
    tiny_unet,
    write_lora,
    write_model,
)


@pytest.fixture
def tuned(base: Any, run_node: Callable) -> Any:
    return run_node("RLGLoadLora", model=base, lora_name="pairs", strength=1.0)[0]


@pytest.fixture
def refused(run_node: Callable) -> Callable[..., str]:
    """The one sentence with which all three nodes refuse a pair."""

    def message(base: Any, tuned: Any, scale: float = 1.6) -> str:
        said = set()
        pair = {"base": base, "tuned": tuned, "scale": scale}
        for node, inputs in (
            ("RLGModel", pair),
            ("RLGGuider", {**pair, "positive": conds(1), "negative": conds(2), "cfg": 4.5}),
            ("RLGKSampler", {**pair, **task()}),
        ):
            with pytest.raises(ValueError) as caught:
                run_node(node, **inputs)
            said.add(str(caught.value))
        (sentence,) = said
        assert "\n" not in sentence and sentence.endswith(".")
        return sentence

    return message


def test_models_on_two_devices(base, tuned, refused) -> None:
    """As Select Model Device puts them: the latent is on one device."""
    elsewhere = tuned.clone()
    elsewhere.load_device = torch.device("cpu", 1)
    assert refused(base, elsewhere).startswith("tuned: it computes on cpu:1 and base on cpu; ")


def test_a_model_that_remembers_its_text_takes_no_lora_on_the_fly(base, tuned, refused, run_node, monkeypatch) -> None:
    """HiDream-O1 keeps keys and values of the prompt between calls, whatever its weights are by then."""
    monkeypatch.setattr(base.model.diffusion_model, "clear_kv_cache", lambda: None, raising=False)
    assert "keeps what its text became" in refused(base, tuned)
    run_node("RLGKSampler", base=base, tuned=base, scale=1.6, **task(steps=1))
    run_node("RLGKSampler", base=base, tuned=tuned, scale=0.0, **task(steps=1))


EQUAL = ["bypassed loader", "strength 0", "untrained LoRA", "same checkpoint"]


@pytest.fixture(params=EQUAL)
def equal(request: pytest.FixtureRequest, base: Any, checkpoint: Any, run_node: Callable, models_dir: Any) -> Any:
    """A tuned MODEL that is the base."""
    if request.param == "bypassed loader":
        return base
    if request.param == "same checkpoint":
        return load_checkpoint(checkpoint)
    if request.param == "strength 0":
        return run_node("RLGLoadLora", model=base, lora_name="pairs", strength=0.0)[0]
    write_lora(models_dir, "untrained", init_scale=0.0)
    return run_node("RLGLoadLora", model=base, lora_name="untrained", strength=1.0)[0]


def test_equal_models_sample_the_base_alone_with_a_warning(base, equal, run_node, caplog) -> None:
    """Whoever bypasses the LoRA loader to compare sees the base's picture, at the base's price, and why."""
    (expected,) = run_node("KSampler", model=base, **task())
    (model,) = run_node("RLGModel", base=base, tuned=equal, scale=1.6)
    caplog.clear()
    counters = [Counter(patcher) for patcher in {id(p.model): p for p in (base, equal)}.values()]
    results = [
        run_node("KSampler", model=model, **task())[0],
        run_node("RLGKSampler", base=base, tuned=equal, scale=1.6, **task())[0],
        run_node("RLGSweep", base=base, tuned=equal, scales="0, 1.6, 3", switch_percents="", **task())[0],
    ]
    pictures = torch.cat([result["samples"] for result in results])
    assert all(torch.equal(picture, expected["samples"][0]) for picture in pictures) and len(pictures) == 5
    assert sum(counter.rows for counter in counters) == 3 * 2 * task()["steps"]
    assert [record.levelname for record in caplog.records].count("WARNING") == 2
    assert "nothing to guide" in caplog.text and "bypassed" in caplog.text and "strength other than 0" in caplog.text


@pytest.mark.parametrize("merged_by", ["saving it", "a sampler"])
def test_a_lora_in_the_bases_weights_does_not_make_an_equal_pair(
    base, tuned, checkpoint, models_dir, run_node, merged_by
) -> None:
    """The host puts the LoRA into weights that base and tuned share, and leaves it there until base is loaded."""
    path = models_dir / "checkpoints" / "merged.safetensors"
    comfy.sd.save_checkpoint(str(path), tuned)
    saved = load_checkpoint(path)
    (expected,) = run_node("RLGKSampler", base=load_checkpoint(checkpoint), tuned=saved, scale=1.6, **task())
    if merged_by == "saving it":
        comfy.sd.save_checkpoint(str(path), tuned)
    else:
        run_node("KSampler", model=tuned, **task())
    (model,) = run_node("RLGModel", base=base, tuned=saved, scale=1.6)
    (ours,) = run_node("KSampler", model=model, **task())
    assert relative(ours["samples"], expected["samples"]) < CLOSE


def test_an_equal_model_leaves_the_others_of_a_chain_as_they_are(base, equal, tuned, run_node) -> None:
    (guided,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    (expected,) = run_node("KSampler", model=guided, **task())
    (chained,) = run_node("RLGModel", base=guided, tuned=equal, scale=0.7)
    for result in (
        run_node("KSampler", model=chained, **task())[0],
        run_node("RLGSweep", base=guided, tuned=equal, scales="2", switch_percents="", **task())[0],
    ):
        assert torch.equal(result["samples"], expected["samples"])


def test_a_swapped_pair_is_warned_of(base, tuned, run_node, caplog) -> None:
    run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    assert not caplog.records
    run_node("RLGModel", base=tuned, tuned=base, scale=1.6)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "swapped" in record.getMessage()


def test_a_swapped_pair_of_two_checkpoints_is_warned_of(tuned, checkpoint, run_node, caplog) -> None:
    run_node("RLGModel", base=tuned, tuned=load_checkpoint(checkpoint), scale=1.6)
    assert "swapped" in caplog.text


def test_a_lora_of_the_base_alone_is_warned_of(base, tuned, run_node, models_dir, caplog) -> None:
    write_lora(models_dir, "style", seed=5)
    (styled, _) = run_node("RLGLoadLora", model=base, lora_name="style", strength=1.0)
    (both, _) = run_node("RLGLoadLora", model=styled, lora_name="pairs", strength=1.0)
    run_node("RLGModel", base=styled, tuned=both, scale=1.6)
    assert not caplog.records
    run_node("RLGModel", base=styled, tuned=tuned, scale=1.6)
    assert "goes before the loader" in caplog.text and "swapped" not in caplog.text


def test_a_lora_that_changes_nothing_is_named_by_its_loader(base, run_node, models_dir, caplog) -> None:
    write_lora(models_dir, "untrained", init_scale=0.0)
    for name, strength, reason in (("untrained", 1.0, "matrices are zero"), ("pairs", 0.0, "strength is 0")):
        caplog.clear()
        _, report = run_node("RLGLoadLora", model=base, lora_name=name, strength=strength)
        assert f"It changes nothing: its {reason}" in report and report in caplog.text
    caplog.clear()
    _, report = run_node("RLGLoadLora", model=base, lora_name="pairs", strength=0.1)
    assert "changes nothing" not in report and not caplog.records


def test_same_checkpoint_with_a_lora_is_a_pair(base, checkpoint, run_node) -> None:
    other = load_checkpoint(checkpoint)
    (tuned, _) = run_node("RLGLoadLora", model=other, lora_name="pairs", strength=1.0)
    run_node("RLGModel", base=base, tuned=tuned, scale=1.6)


def test_another_size_of_the_architecture(refused, base, models_dir) -> None:
    larger = load_checkpoint(write_model(models_dir, "larger", TinySD3(depth=3)))
    sentence = refused(base, larger)
    assert "another size of SD3" in sentence and "(128," in sentence and "(192," in sentence


def test_another_architecture(refused, base) -> None:
    sentence = refused(base, tiny_unet())
    assert "it is a SD15 model and base is a SD3" in sentence


def test_samplings_that_tell_the_model_other_times_are_no_pair(base, tuned, run_node) -> None:
    """Of equal shift, so their sigmas are equal: AuraFlow's counts to 1, SD3's to 1000."""
    ours, theirs = (
        run_node(kind, model=model, shift=2.0)[0]
        for kind, model in (("ModelSamplingSD3", base), ("ModelSamplingAuraFlow", tuned))
    )
    with pytest.raises(ValueError, match=r"^tuned: base and tuned differ in .*\.$"):
        run_node("RLGModel", base=ours, tuned=theirs, scale=1.5)


def test_model_patch_on_one_of_them(refused, base, tuned, run_node) -> None:
    (shifted,) = run_node("ModelSamplingSD3", model=tuned, shift=5.0)
    sentence = refused(base, shifted)
    assert "'model_sampling'" in sentence and "before the LoRA loader" in sentence


def test_equal_model_sampling_from_two_nodes_is_a_pair(base, tuned, run_node) -> None:
    shifted = [run_node("ModelSamplingSD3", model=m, shift=5.0)[0] for m in (base, tuned)]
    run_node("RLGModel", base=shifted[0], tuned=shifted[1], scale=1.6)


def test_two_checkpoints_with_another_shift_are_mixed_with_a_warning(base, checkpoint, run_node, caplog) -> None:
    other = load_checkpoint(checkpoint)
    (tuned, _) = run_node("RLGLoadLora", model=other, lora_name="pairs", strength=1.0)
    (shifted,) = run_node("ModelSamplingSD3", model=tuned, shift=5.0)
    with caplog.at_level("WARNING"):
        run_node("RLGModel", base=base, tuned=shifted, scale=1.6)
    assert "different model sampling" in caplog.text


def test_weights_that_no_hook_can_reach(refused, base, tuned) -> None:
    key = "diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight"
    patched = tuned.clone()
    patched.add_patches({key: (torch.ones_like(base.model.state_dict()[key]),)}, 1.0)
    assert key in refused(base, patched)


def test_two_loras_on_a_checkpoint_that_is_not_the_base(base, checkpoint, run_node) -> None:
    """Both tuned MODELs are clones of one other checkpoint: the host can load the weights of one of them only."""
    other = load_checkpoint(checkpoint)
    first, second = (
        run_node("RLGLoadLora", model=other, lora_name="pairs", strength=strength)[0] for strength in (1.0, 0.5)
    )
    (model,) = run_node("RLGModel", base=base, tuned=first, scale=0.7)
    with pytest.raises(ValueError, match=r"^tuned: it shares its weights with another tuned MODEL .*\.$"):
        run_node("RLGModel", base=model, tuned=second, scale=0.7)


@pytest.mark.parametrize("kind", ["LoRA", "ModelSampling"])
def test_what_would_act_on_the_base_checkpoint_alone(base, checkpoint, run_node, kind) -> None:
    other = load_checkpoint(checkpoint)
    tuned, _ = run_node("RLGLoadLora", model=other, lora_name="pairs", strength=1.0)
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    if kind == "LoRA":
        model, _ = run_node("RLGLoadLora", model=model, lora_name="pairs", strength=0.5)
    else:
        (model,) = run_node("ModelSamplingSD3", model=model, shift=5.0)
    with pytest.raises(ValueError, match=r"^model: a LoRA or model patch after RLG Model .* on both MODELs\.$"):
        run_node("KSampler", model=model, **task())


def test_guided_model_as_tuned(refused, base, tuned, run_node) -> None:
    (guided,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    assert "guided MODEL already" in refused(base, guided)


@pytest.mark.parametrize("scale", [math.nan, math.inf, 11.0])
def test_scale_that_is_no_number(refused, base, tuned, scale) -> None:
    assert refused(base, tuned, scale).startswith("scale:")


def test_latent_of_another_model(base, tuned, run_node) -> None:
    latent = {"samples": torch.ones(1, 4, 16, 16)}
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    for node, models in (
        ("RLGKSampler", {"base": base, "tuned": tuned, "scale": 1.6}),
        ("RLGKSampler", {"base": base, "tuned": tuned, "scale": 0.0}),
        ("KSampler", {"model": model}),
    ):
        with pytest.raises(ValueError, match=r"^latent_image: it has 4 channels and this model needs 16; .*\.$"):
            run_node(node, **models, **task(latent_image=latent))


def test_empty_latent_of_another_model_is_adapted_as_the_stock_sampler_does(base, tuned, run_node) -> None:
    inputs = task(latent_image={"samples": torch.zeros(1, 4, 16, 16)})
    ours = run_node("RLGKSampler", base=base, tuned=tuned, scale=0.0, **inputs)[0]["samples"]
    assert torch.equal(ours, run_node("KSampler", model=base, **inputs)[0]["samples"])


@pytest.mark.parametrize("sigmas", [[], [1.0]])
def test_schedule_without_a_step(base, tuned, run_node, sigmas) -> None:
    (guider,) = run_node("RLGGuider", base=base, tuned=tuned, positive=conds(1), negative=conds(2), cfg=4.5, scale=1.6)
    with pytest.raises(ValueError, match=r"^sigmas: the list holds no step; .*\.$"):
        run_node(
            "SamplerCustomAdvanced",
            noise=run_node("RandomNoise", noise_seed=1)[0],
            guider=guider,
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=torch.tensor(sigmas),
            latent_image=picture_latent(),
        )
