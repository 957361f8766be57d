"""What other nodes bring keeps working, on each branch as it would in a stock sampler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from pairs import (
    CLOSE,
    FAMILIES,
    SIZE,
    as_single_file,
    conds,
    load_checkpoint,
    picture_latent,
    relative,
    task,
    with_kv_cache,
    write_lora,
)
from stock_guiders import two_models

CANCEL = comfy.model_management.InterruptProcessingException


@pytest.fixture(scope="module")
def check(base: Any, other: Any, run_node: Callable) -> Callable[..., torch.Tensor]:
    """Compare a run on shared weights with two stock models that got the same treatment."""

    def run(
        prepare_base: Callable[[Any], Any] = lambda m: m,
        prepare_tuned: Callable[[Any], Any] = lambda m: m,
        **changes: Any,
    ) -> torch.Tensor:
        def tuned(model: Any) -> Any:
            return prepare_tuned(run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)[0])

        inputs = task(**changes)
        ours = run_node("RLGKSampler", base=prepare_base(base), tuned=tuned(base), scale=1.6, **inputs)[0]["samples"]
        assert relative(ours, two_models(prepare_base(base), tuned(other), 1.6, **inputs)) < CLOSE
        return ours

    return run


@pytest.fixture(scope="module")
def plain(check: Callable[..., torch.Tensor]) -> torch.Tensor:
    """What a run gives without anything of others."""
    with torch.inference_mode():
        return check()


class _Control(comfy.controlnet.ControlBase):
    """A control that pushes the model's hidden states by a fixed pattern, as a ControlNet does by a learned one."""

    def get_control(self, x_noisy: torch.Tensor, *_: Any) -> dict[str, list[torch.Tensor]]:
        # SD3 adds control outputs to the image tokens after each block; batch as the model's.
        hidden, tokens = 128, (x_noisy.shape[-1] // 2) * (x_noisy.shape[-2] // 2)
        pattern = torch.linspace(-1, 1, hidden).expand(x_noisy.shape[0], tokens, hidden)
        return {"output": [pattern * 0.3 * float(x_noisy.std())]}

    def copy(self) -> _Control:
        return _Control()


@pytest.mark.parametrize("apply_to_uncond", [True, False])
def test_control(check, plain, apply_to_uncond) -> None:
    positive = conds(1, control=_Control(), control_apply_to_uncond=apply_to_uncond)
    assert relative(check(positive=positive), plain) > 1e-3


class _ControlOfASampling(_Control):
    """Looks into the sampling of the model that it was last prepared for, as ControlNet does."""

    def __init__(self, seen: list[tuple[float, float]]) -> None:
        super().__init__()
        self._seen = seen

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self._sampling = model.model_sampling

    def get_control(self, *args: Any) -> dict[str, list[torch.Tensor]]:
        self._seen.append((self._sampling.shift, self.timestep_range[1]))
        return super().get_control(*args)


def test_a_control_goes_by_the_sigmas_of_the_base(base, other, run_node) -> None:
    """Which are those of the run, for both models: the tuned one's own shift would end it at another step."""
    seen: list[tuple[float, float]] = []
    control = _ControlOfASampling(seen)
    control.timestep_percent_range = (0.0, 0.5)
    tuned = run_node("RLGLoadLora", model=other, lora_name="surroundings", strength=1.0)[0]
    (model, tuned) = (
        run_node("ModelSamplingSD3", model=each, shift=shift)[0] for each, shift in ((base, 2.0), (tuned, 5.0))
    )
    positive = conds(1, control=control, control_apply_to_uncond=True)
    run_node("RLGKSampler", base=model, tuned=tuned, scale=1.6, **task(steps=2, positive=positive))
    half_way = 2.0 * 0.5 / (1 + (2.0 - 1) * 0.5)  # of the time, shifted
    assert len(seen) >= 2 * 2 and seen == [(2.0, pytest.approx(half_way))] * len(seen)


def test_area_conds(check, plain) -> None:
    left = conds(3, area=(SIZE // 2, SIZE // 2, 0, 0), strength=0.8)
    assert relative(check(positive=conds(1) + left), plain) > 1e-3


def test_masked_conds(check, plain) -> None:
    mask = torch.zeros(1, SIZE * 8, SIZE * 8)
    mask[:, :, : SIZE * 4] = 1
    assert relative(check(positive=conds(1) + conds(3, mask=mask, mask_strength=0.7)), plain) > 1e-3


def test_timed_conds(check, plain) -> None:
    positive = conds(1, start_percent=0.0, end_percent=0.5) + conds(4, start_percent=0.5, end_percent=1.0)
    assert relative(check(positive=positive), plain) > 1e-3


def test_default_conds(check, plain) -> None:
    """They fill what a mask leaves over, and the host evaluates them after all others: rows come in another order."""
    mask = torch.zeros(1, SIZE * 8, SIZE * 8)
    mask[:, :, : SIZE * 4] = 1
    filled = {
        name: conds(seed, mask=mask, mask_strength=1.0) + conds(seed + 2, default=True)
        for name, seed in (("positive", 1), ("negative", 2))
    }
    assert relative(check(**filled), plain) > 1e-3


def test_conds_of_different_lengths(check) -> None:
    short = [[conds(5)[0][0][:, :5], conds(5)[0][1]]]
    check(negative=short)


@pytest.mark.parametrize("batch", [1, 3])
def test_noise_mask(check, batch) -> None:
    mask = torch.zeros(batch, SIZE * 8, SIZE * 8)
    mask[:, : SIZE * 4] = 1
    latent = {**picture_latent(batch), "noise_mask": mask}
    kept = check(latent_image=latent, denoise=0.5)
    torch.testing.assert_close(kept[:, :, SIZE // 2 :], latent["samples"][:, :, SIZE // 2 :])


def test_img2img(check) -> None:
    check(latent_image=picture_latent(2), denoise=0.5)


def test_batch_index(check) -> None:
    latent = {"samples": torch.zeros(2, 16, SIZE, SIZE), "batch_index": [3, 1]}
    check(latent_image=latent)


def _skip_a_layer(model: Any, run_node: Callable) -> Any:
    return run_node("SkipLayerGuidanceSD3", model=model, layers="1", scale=3.0, start_percent=0.0, end_percent=1.0)[0]


@pytest.fixture
def attention_patch() -> Callable[[Any], Any]:
    """A PAG-like change of the block outputs that looks at cond_or_uncond."""

    def replace(args: dict, extra: dict) -> dict:
        out = extra["original_block"](args)
        kinds = args["transformer_options"]["cond_or_uncond"]
        assert set(kinds) <= {0, 1}, "other packs know 0 (positive) and 1 (negative) only"
        chunks = out["img"].chunk(len(kinds))
        out["img"] = torch.cat([c * (0.9 if kind == 0 else 1.1) for c, kind in zip(chunks, kinds, strict=True)])
        return out

    def patch(model: Any) -> Any:
        patched = model.clone()
        patched.set_model_patch_replace(replace, "dit", "double_block", 0)
        return patched

    return patch


def test_attention_patch_on_the_base_alone(check, plain, attention_patch) -> None:
    assert relative(check(prepare_base=attention_patch), plain) > 1e-3


def test_attention_patch_on_the_tuned_alone(check, plain, attention_patch) -> None:
    assert relative(check(prepare_tuned=attention_patch), plain) > 1e-3


def test_attention_patch_on_both(base, other, run_node, attention_patch, rlg, monkeypatch) -> None:
    """Put before the LoRA loader it sits on both MODELs; where they would share one batch they run in turn."""
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", float("inf"))
    (ours, theirs) = (attention_patch(m) for m in (base, other))
    tuned, tuned_other = (
        run_node("RLGLoadLora", model=m, lora_name="surroundings", strength=1.0)[0] for m in (ours, theirs)
    )
    got = run_node("RLGKSampler", base=ours, tuned=tuned, scale=1.6, **task())[0]["samples"]
    assert relative(got, two_models(ours, tuned_other, 1.6, **task())) < CLOSE


@pytest.mark.parametrize("after", [False, True], ids=["before the LoRA", "after RLG Model"])
def test_patch_that_looks_for_one_positive_and_one_negative(base, other, run_node, after) -> None:
    """As NAG and SAG do: they take the first 0 and the first 1, so each model needs a call of its own."""

    def replace(args: dict, extra: dict) -> dict:
        out = extra["original_block"](args)
        kinds = args["transformer_options"]["cond_or_uncond"]
        if {0, 1} <= set(kinds):
            chunks = list(out["img"].chunk(len(kinds)))
            positive, negative = kinds.index(0), kinds.index(1)
            chunks[positive] = chunks[positive] * 1.3 - chunks[negative] * 0.3
            out["img"] = torch.cat(chunks)
        return out

    def patched(model: Any) -> Any:
        model = model.clone()
        model.set_model_patch_replace(replace, "dit", "double_block", 0)
        return model

    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)[0]

    inputs, batching = task(batch=2), "one batch"
    if after:
        (model,) = run_node("RLGModel", base=base, tuned=tune(base), scale=1.6, batching=batching)
        got = run_node("KSampler", model=patched(model), **inputs)[0]["samples"]
    else:
        own = patched(base)
        got = run_node("RLGKSampler", base=own, tuned=tune(own), scale=1.6, batching=batching, **inputs)[0]["samples"]
    assert relative(got, two_models(patched(base), tune(patched(other)), 1.6, **inputs)) < CLOSE
    assert relative(got, two_models(base, tune(other), 1.6, **inputs)) > 1e-3


def test_a_patch_of_the_attention_sees_one_model_at_a_time(base, run_node) -> None:
    rows: list[int] = []

    def note(execute: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows.append(len(x))
        return execute(x, *args, **kwargs)

    noted = base.clone()
    noted.add_wrapper(WrappersMP.APPLY_MODEL, note)
    for model, each in ((noted, 4), (noted.clone(), 2)):
        if each == 2:
            model.set_model_attn1_output_patch(lambda out, extra: out)
        tuned = run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)[0]
        rows.clear()
        run_node("RLGKSampler", base=model, tuned=tuned, scale=1.6, batching="one batch", **task())
        assert set(rows) == {each}


def test_patches_read_what_a_stock_run_tells_them(base, run_node) -> None:
    """Which rows are whose, the ids of the conds and the noise level: for two branches as for one, twice."""
    told: list[dict] = []

    def note(execute: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        told.append({"rows": len(x), **args[-1]})
        return execute(x, t, *args, **kwargs)

    noted = base.clone()
    noted.add_wrapper(WrappersMP.APPLY_MODEL, note)
    tuned = run_node("RLGLoadLora", model=noted, lora_name="surroundings", strength=1.0)[0]
    run_node("KSampler", model=noted, **task(batch=2))
    stock, told = told, []
    run_node("RLGKSampler", base=noted, tuned=tuned, scale=1.6, batching="one batch", **task(batch=2))
    assert len(told) == len(stock)
    for ours, theirs in zip(told, stock, strict=True):
        assert ours["rows"] == 2 * theirs["rows"] == 8
        assert ours["cond_or_uncond"] == 2 * theirs["cond_or_uncond"]
        assert torch.equal(ours["sigmas"], theirs["sigmas"])
        assert len(set(ours["uuids"])) == len(ours["uuids"]) == 4


def test_patch_that_writes_into_the_text(base, other, run_node) -> None:
    """A stock sampler makes the batch of texts anew at every step, so that what a patch does to one is gone."""

    def weaken(execute: Any, x: Any, t: Any, c_concat: Any, text: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        text.mul_(0.7)
        return execute(x, t, c_concat, text, *args, **kwargs)

    models = [model.clone() for model in (base, other)]
    for model in models:
        model.add_wrapper(WrappersMP.APPLY_MODEL, weaken)
    tuned, tuned_other = (run_node("RLGLoadLora", model=m, lora_name="surroundings", strength=1.0)[0] for m in models)
    got = run_node("RLGKSampler", base=models[0], tuned=tuned, scale=1.6, batching="one batch", **task())[0]["samples"]
    assert relative(got, two_models(models[0], tuned_other, 1.6, **task())) < CLOSE


def test_attention_patch_after_rlg_model_acts_on_both(base, other, run_node, attention_patch) -> None:
    (tuned, tuned_other) = (
        run_node("RLGLoadLora", model=m, lora_name="surroundings", strength=1.0)[0] for m in (base, other)
    )
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    got = run_node("KSampler", model=attention_patch(model), **task())[0]["samples"]
    expected = two_models(attention_patch(base), attention_patch(tuned_other), 1.6, **task())
    assert relative(got, expected) < CLOSE


def test_patch_after_rlg_model_leaves_a_patch_of_the_base_where_it_is(base, other, run_node, attention_patch) -> None:
    """A callable object is copied by each clone; it must still be known as the base's own."""

    class Rescale:
        def __call__(self, args: dict) -> torch.Tensor:
            return args["denoised"] * 0.9

    own = base.clone()
    own.set_model_sampler_post_cfg_function(Rescale())
    (tuned, tuned_other) = (
        run_node("RLGLoadLora", model=m, lora_name="surroundings", strength=1.0)[0] for m in (base, other)
    )
    (model,) = run_node("RLGModel", base=own, tuned=tuned, scale=1.6)
    got = run_node("KSampler", model=attention_patch(model.clone()), **task())[0]["samples"]
    expected = two_models(attention_patch(own), attention_patch(tuned_other), 1.6, **task())
    assert relative(got, expected) < CLOSE


@pytest.mark.parametrize("where", ["prepare_base", "prepare_tuned"])
def test_skip_layer_guidance(check, plain, run_node, where) -> None:
    """A post-CFG patch that evaluates the model itself: on the tuned branch that must be the tuned model."""
    guided = check(**{where: lambda m: _skip_a_layer(m, run_node)})
    assert relative(guided, plain) > 1e-3


def test_skip_layer_guidance_on_both(base, other, run_node) -> None:
    ours, theirs = (_skip_a_layer(m, run_node) for m in (base, other))
    tuned, tuned_other = (
        run_node("RLGLoadLora", model=m, lora_name="surroundings", strength=1.0)[0] for m in (ours, theirs)
    )
    got = run_node("RLGKSampler", base=ours, tuned=tuned, scale=1.6, **task())[0]["samples"]
    assert relative(got, two_models(ours, tuned_other, 1.6, **task())) < CLOSE


@pytest.mark.parametrize("kind", ["model_function_wrapper", "sampler_cfg_function", "pre_cfg", "apply_model wrapper"])
@pytest.mark.parametrize("where", ["prepare_base", "prepare_tuned"])
def test_other_hooks_act_on_their_own_model(check, plain, kind, where) -> None:
    def prepare(model: Any) -> Any:
        patched = model.clone()
        if kind == "model_function_wrapper":
            patched.set_model_unet_function_wrapper(lambda f, a: f(a["input"], a["timestep"], **a["c"]) * 0.95)
        elif kind == "sampler_cfg_function":
            patched.set_model_sampler_cfg_function(lambda a: a["uncond"] + (a["cond"] - a["uncond"]) * 2)
        elif kind == "pre_cfg":
            patched.set_model_sampler_pre_cfg_function(lambda a: [a["conds_out"][0] * 0.95, a["conds_out"][1]])
        else:
            patched.add_wrapper(WrappersMP.APPLY_MODEL, lambda execute, *a, **k: execute(*a, **k) * 0.95)
        return patched

    assert relative(check(**{where: prepare}), plain) > 1e-3


def test_predict_noise_wrapper_acts_on_its_own_model(check) -> None:
    def prepare(model: Any) -> Any:
        patched = model.clone()
        patched.add_wrapper(WrappersMP.PREDICT_NOISE, lambda execute, *a, **k: execute(*a, **k) * 0.95)
        return patched

    on_base, on_tuned = check(prepare_base=prepare), check(prepare_tuned=prepare)
    assert relative(on_base, on_tuned) > 1e-3


def test_predict_noise_wrapper_after_rlg_model_is_around_the_mix(base, run_node) -> None:
    """A cache put last must see one model, not take one branch for the other."""
    tuned = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)[0]
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    plain = run_node("KSampler", model=model, **task())[0]["samples"]
    calls = []

    def note(execute: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(execute(*args, **kwargs))
        return calls[-1]

    noted = model.clone()
    noted.add_wrapper(WrappersMP.PREDICT_NOISE, note)
    assert torch.equal(run_node("KSampler", model=noted, **task())[0]["samples"], plain)
    assert len(calls) == task()["steps"]
    assert relative(base.model.process_latent_out(calls[-1]), plain) < CLOSE  # the last step lands on the mix


def test_patches_of_the_tuned_model_are_moved_as_the_host_moves_them(base, run_node) -> None:
    """It is never loaded where it shares the base's weights, and loading is what moves patches that hold weights."""
    moves: list[Any] = []

    class Patch:
        def to(self, target: Any) -> Patch:
            moves.append(target)
            return self

        def __deepcopy__(self, _: Any) -> Patch:
            return self

        def __call__(self, args: dict) -> dict:
            moves.append("called")
            return args

    tuned = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)[0].clone()
    tuned.set_model_patch(Patch(), "post_input")
    tuned.set_model_patch_replace(Patch(), "dit", "double_block", 99)
    run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1))
    assert moves[:4] == [torch.device("cpu")] * 2 + [torch.float32] * 2
    assert moves[-1] == tuned.offload_device


def test_patches_of_the_tuned_model_are_emptied_after_the_run(base, other, run_node) -> None:
    """As the host does for the MODEL it samples with: what a patch remembers, as of a reference, is of one run."""
    seen: list[str] = []

    class Patch:
        def __call__(self, args: dict) -> dict:
            seen.append("called")
            return args

        def cleanup(self) -> None:
            seen.append("emptied")

    def noted(name: str) -> Callable[[Any], None]:
        return lambda patcher: seen.append(name)

    shared = base.clone()
    shared.add_callback(CallbacksMP.ON_CLEANUP, noted("shared"))
    tuned = run_node("RLGLoadLora", model=shared, lora_name="surroundings", strength=1.0)[0]
    tuned.set_model_patch(Patch(), "post_input")
    tuned.add_callback(CallbacksMP.ON_PRE_RUN, noted("begins"))
    tuned.add_callback(CallbacksMP.ON_CLEANUP, noted("ends"))
    run_node("RLGKSampler", base=shared, tuned=tuned, scale=1.6, **task(steps=1))
    emptied = ["emptied"] if hasattr(base, "model_patches_call_function") else []
    assert [name for name in seen if name != "called"] == ["begins", *emptied, "ends", "shared"]
    seen.clear()
    run_node("RLGKSampler", base=other, tuned=tuned, scale=1.6, **task(steps=1))  # a checkpoint of its own
    assert seen.count("begins") == seen.count("ends") == 1


@pytest.mark.parametrize("on", ["base", "tuned", "both"])
def test_lazycache_on_a_model_of_the_pair_is_refused(base, run_node, on) -> None:
    from comfy_extras.nodes_easycache import LazyCacheNode

    def cached(model: Any) -> Any:
        (model,) = LazyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result
        return model

    first = cached(base) if on == "both" else base
    tuned = run_node("RLGLoadLora", model=first, lora_name="surroundings", strength=1.0)[0]
    pair = {"base": cached(base) if on == "base" else first, "tuned": cached(tuned) if on == "tuned" else tuned}
    with pytest.raises(ValueError, match=r"^model: LazyCache on base or tuned .* or put it after RLG Model"):
        run_node("RLGKSampler", scale=1.6, **pair, **task())
    (mixed,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6) if on == "base" else (None,)
    if mixed:
        run_node("KSampler", model=cached(mixed), **task())


@pytest.mark.parametrize("after", [False, True], ids=["on the pair", "after RLG Model"])
def test_a_cache_that_does_not_tell_models_apart_is_refused(base, run_node, after) -> None:
    """As newer hosts have one for Wan's poses, in their own options."""

    def cached(model: Any) -> Any:
        copy = model.clone()
        copy.model_options["transformer_options"]["animate2_cache"] = object()
        return copy

    first = base if after else cached(base)
    (tuned, _) = run_node("RLGLoadLora", model=first, lora_name="surroundings", strength=1.0)
    (guided,) = run_node("RLGModel", base=first, tuned=tuned, scale=1.6)
    with pytest.raises(ValueError, match=r"^model: WanAnimate2Cache would give .* take it out\.$"):
        run_node("KSampler", model=cached(guided) if after else guided, **task())


@pytest.mark.parametrize("where", ["before the loader", "after RLG Model", "one on each"])
def test_one_cache_of_reference_pictures_for_both_models_is_refused(base, run_node, where) -> None:
    first = with_kv_cache(base) if where == "before the loader" else base
    (tuned, _) = run_node("RLGLoadLora", model=first, lora_name="surroundings", strength=1.0)
    if where == "one on each":
        run_node("RLGKSampler", base=with_kv_cache(base), tuned=with_kv_cache(tuned), scale=1.6, **task())
        return
    (guided,) = run_node("RLGModel", base=first, tuned=tuned, scale=1.6)
    with pytest.raises(ValueError, match=r"^model: one Flux KV Cache for base and tuned .* or take it out\.$"):
        run_node("KSampler", model=with_kv_cache(guided) if where == "after RLG Model" else guided, **task())


def test_easycache_on_the_tuned_model_alone_is_refused(base, run_node) -> None:
    """It is prepared by a wrapper around the whole run, and that run is the base's."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    (tuned, _) = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)
    (cached,) = EasyCacheNode.execute(tuned, 0.2, 0.15, 0.95, False).result
    with pytest.raises(ValueError, match=r"^tuned: EasyCache on the tuned model alone never begins; put it before"):
        run_node("RLGKSampler", base=base, tuned=cached, scale=1.6, **task())


def test_easycache_spares_calls_of_the_base_and_never_takes_them_for_the_tuned_models(run_node) -> None:
    """It tells conds apart, and those of a tuned model are its own."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    base, inputs, rows = FAMILIES["SD1.5"].load(), {**FAMILIES["SD1.5"].task(), "steps": 12}, []
    weight = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    tuned = base.clone()
    shape = base.model.state_dict()[weight].shape
    tuned.add_patches({weight: (0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0)),)})
    base.model.diffusion_model.out.register_forward_hook(lambda module, args, out: rows.append(out.shape[0]))
    (exact,) = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **inputs)
    (mixed,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    evaluated = []
    for threshold in (0.0, 1.0):
        (model,) = EasyCacheNode.execute(mixed, threshold, 0.15, 0.95, False).result
        rows.clear()
        (found,) = run_node("KSampler", model=model, **inputs)
        evaluated.append(sum(rows))
        if threshold == 0.0:
            assert relative(found["samples"], exact["samples"]) < CLOSE
    of_one = 2 * inputs["steps"]  # rows with and without the prompt
    assert evaluated[0] == 2 * of_one and of_one < evaluated[1] < 2 * of_one


def test_a_sampler_with_a_cache_of_attention_is_refused(base, run_node) -> None:
    """SamplerARVideo of newer hosts: the second model would go on from what the first one left in it."""

    def sample_ar_video(model: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("it was called")

    tuned = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)[0]
    (guider,) = run_node("RLGGuider", base=base, tuned=tuned, positive=conds(1), negative=conds(2), cfg=1.0, scale=1.6)
    sampler, sigmas = comfy.samplers.KSAMPLER(sample_ar_video), torch.tensor([1.0, 0.0])
    latent = task()["latent_image"]
    with pytest.raises(ValueError, match=r"^sampler: SamplerARVideo keeps one attention cache"):
        run_node(
            "SamplerCustomAdvanced",
            noise=run_node("DisableNoise")[0],
            guider=guider,
            sampler=sampler,
            sigmas=sigmas,
            latent_image=latent,
        )


def test_sound_and_pictures_are_told_apart_in_both_checkpoints(base, other, run_node, monkeypatch) -> None:
    """By the shapes of their latents, which the host tells the model that it samples with."""
    seen = set()

    def note(apply: Callable, arguments: dict) -> torch.Tensor:
        seen.update(str(model.model.latent_shapes) for model in (base, other))
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    for model, shapes in ((base, None), (other, "of another run")):
        monkeypatch.setattr(model.model, "latent_shapes", shapes, raising=False)
    tuned = run_node("RLGLoadLora", model=other, lora_name="surroundings", strength=1.0)[0].clone()
    tuned.set_model_unet_function_wrapper(note)
    run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1))
    assert len(seen) == 1


def test_two_checkpoints_leave_dynamic_loading_together(base, other, run_node, monkeypatch) -> None:
    """For hooks on conds newer hosts take the MODEL they sample with out of it, where hooks cannot be applied."""
    from comfy.model_patcher import ModelPatcher

    taken_out = []

    def whole(model: Any) -> Any:
        taken_out.append(model.model)
        found = model.clone()
        found.rlg_test_whole = True
        return found

    # On a CPU no MODEL is loaded dynamically.
    is_dynamic = lambda model: model.model is other.model and not hasattr(model, "rlg_test_whole")  # noqa: E731
    monkeypatch.setattr(ModelPatcher, "is_dynamic", is_dynamic, raising=False)
    monkeypatch.setattr(ModelPatcher, "get_non_dynamic_delegate", whole, raising=False)
    tuned = run_node("RLGLoadLora", model=other, lora_name="surroundings", strength=1.0)[0]
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.TransformerOptionsHook(transformers_dict={}))
    for positive, taken in ((conds(1), []), (comfy.hooks.set_hooks_for_conditioning(conds(1), hooks), [other.model])):
        run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1, positive=positive))
        assert taken_out == taken


@pytest.fixture
def hooked(models_dir: Path) -> Callable[..., list]:
    """A prompt with a LoRA hook, whose keyframes are counted anew; `guarantee` is of the second one."""
    file = as_single_file(write_lora(models_dir, "hooked", seed=9), models_dir / "loras" / "hooked.safetensors")

    def prompt(keyframes: bool = True, guarantee: int = 1) -> list:
        hooks = comfy.hooks.create_hook_lora(comfy.utils.load_torch_file(str(file)), 0.7, 0.0)
        if keyframes:
            group = comfy.hooks.HookKeyframeGroup()
            group.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
            group.add(comfy.hooks.HookKeyframe(strength=1.5, start_percent=0.4, guarantee_steps=guarantee))
            hooks.set_keyframes_on_hooks(group)
        return comfy.hooks.set_hooks_for_conditioning(conds(1), hooks)

    return prompt


@pytest.mark.parametrize("keyframes", [False, True])
@pytest.mark.parametrize("shared", [True, False], ids=["shared weights", "two checkpoints"])
def test_lora_hooks_on_conds(base, other, checkpoint, run_node, hooked, keyframes, shared) -> None:
    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)[0]

    def prompt() -> list:
        return hooked(keyframes, guarantee=0)

    steps = 6
    ours = run_node(
        "RLGKSampler",
        base=base,
        tuned=tune(base if shared else other),
        scale=1.6,
        **task(steps=steps, positive=prompt()),
    )[0]["samples"]
    expected = two_models(base, tune(load_checkpoint(checkpoint)), 1.6, own_positive=prompt, **task(steps=steps))
    assert relative(ours, expected) < CLOSE
    assert relative(ours, two_models(base, tune(other), 1.6, **task(steps=steps))) > 1e-3


@pytest.mark.parametrize("ending", ["finished", "cancelled"])
def test_hooks_on_conds_leave_both_checkpoints(base, other, run_node, hooked, ending) -> None:
    """As they leave the MODEL that the host samples with: the patches of a hook, its weights, and who samples."""
    tuned = run_node("RLGLoadLora", model=other, lora_name="surroundings", strength=1.0)[0]
    run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1))  # the LoRA is in place from here on
    weights = [{name: w.clone() for name, w in model.model.state_dict().items()} for model in (base, other)]
    samples, registered, noted = [], [], tuned.clone()

    def note(args: dict) -> torch.Tensor:
        samples[:] = [model.model.current_patcher for model in (base, other)]
        registered.append([(len(patcher.hook_patches), len(patcher.hook_backup) > 0) for patcher in samples])
        if ending == "cancelled" and len(registered) == 3:
            comfy.model_management.interrupt_current_processing(True)
        return args["denoised"]

    noted.set_model_sampler_post_cfg_function(note)
    inputs = task(positive=hooked(keyframes=False), cfg=1.0)  # without a negative, before which the hook would go
    with pytest.raises(CANCEL) if ending == "cancelled" else nullcontext():
        run_node("RLGKSampler", base=base, tuned=noted, scale=1.6, **inputs)
    assert registered[0] == [(1, True), (1, True)] and samples[0] is not samples[1]
    for patcher, before in zip(samples, weights, strict=True):
        assert patcher.hook_patches == {} and patcher.hook_patches_backup is None
        assert patcher.hook_backup == {} and patcher.current_hooks is None
        assert patcher.model.current_patcher is None
        assert all(torch.equal(w, before[name]) for name, w in patcher.model.state_dict().items())


@pytest.mark.parametrize("switch", ["", "0.5"])
def test_a_sweep_counts_the_keyframes_of_steps_that_its_cells_share(base, run_node, hooked, switch) -> None:
    (tuned, _) = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)
    scales = (0.5, 1.6, 3.0)
    swept = run_node(
        "RLGSweep", base=base, tuned=tuned, scales=", ".join(map(str, scales)), switch_percents=switch,
        **task(steps=8, positive=hooked()),
    )[0]["samples"]  # fmt: skip
    for cell, scale in zip(swept, scales, strict=True):
        schedule = run_node("RLGCombinedGeneration", switch_percent=0.5, scale=scale)[0] if switch else None
        inputs = task(steps=8, positive=hooked()) | ({"schedule": schedule} if schedule else {})
        (alone,) = run_node("RLGKSampler", base=base, tuned=tuned, scale=scale, **inputs)
        assert relative(cell, alone["samples"][0]) < CLOSE


def test_keyframes_of_a_checkpoint_that_joins_late_are_those_of_the_step(base, other, run_node, hooked) -> None:
    """Counted from the first step on, as where base and tuned share their weights."""
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=0.5, scale=1.6)
    pictures = []
    for model in (base, other):
        (tuned, _) = run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)
        inputs = task(steps=8, positive=hooked(), schedule=schedule)
        pictures.append(run_node("RLGKSampler", base=base, tuned=tuned, scale=9.0, **inputs)[0]["samples"])
    assert relative(*pictures) < CLOSE


def test_guiders_of_other_packs(base, other, run_node) -> None:
    """RLG Model under a guider it does not know: two text CFGs at once."""
    (tuned,) = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)[:1]
    (tuned_other,) = run_node("RLGLoadLora", model=other, lora_name="surroundings", strength=1.0)[:1]

    def one_step(model: Any) -> torch.Tensor:
        (guider,) = run_node(
            "DualCFGGuider", model=model, cond1=conds(1), cond2=conds(3), negative=conds(2), cfg_conds=3.0,
            cfg_cond2_negative=2.0, **({"style": "regular"}),
        )  # fmt: skip
        noise = torch.randn(1, 16, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor([1.0, 0.0]), disable_pbar=True)

    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    of_base, of_tuned = one_step(base), one_step(tuned_other)
    assert relative(one_step(model), of_base + 1.6 * (of_tuned - of_base)) < CLOSE


def test_a_block_that_another_node_leaves_out(check, caplog) -> None:
    """The tuned model's changes there have no effect, in stock samplers either; it is said, and said only then."""

    def without_first_block(model: Any) -> Any:
        model = model.clone()
        model.set_model_patch_replace(lambda args, _: {k: args[k] for k in ("txt", "img")}, "dit", "double_block", 0)
        return model

    check()
    assert "has no effect" not in caplog.text
    check(without_first_block, without_first_block)
    assert caplog.text.count("has no effect: diffusion_model.joint_blocks.0.") == 1


def _remembering(model: Any) -> Any:
    """As caches of other packs: every second call is spared, by what a model gave, kept as attributes of that model."""
    model = model.clone()

    def cached(apply: Callable, args: dict[str, Any]) -> torch.Tensor:
        of_model, x, noise = vars(apply.__self__.diffusion_model), args["input"], float(args["timestep"].max())
        if noise > of_model.get("last_noise", 0.0):  # the first step
            of_model["kept"] = {"calls": 0}
        of_model["last_noise"] = noise
        of_model["kept"]["calls"] += 1
        if of_model["kept"]["calls"] % 2:
            of_model["kept"]["residual"] = apply(x, args["timestep"], **args["c"]) - x
        return x + of_model["kept"]["residual"]

    model.set_model_unet_function_wrapper(cached)
    return model


def test_what_a_pack_remembers_in_the_model_is_each_model_s_own(check, plain) -> None:
    """TeaCache and MagCache: else the tuned model would get what was kept of the base, and not differ from it."""
    assert relative(check(_remembering, _remembering), plain) > 100 * CLOSE


class _Past(comfy.samplers.CFGGuider):
    """As the guider of a pack's NAG sampler."""

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.predict_noise(*args, **kwargs)


def test_a_guider_that_goes_past_the_host_s_wrappers_is_an_error(base, run_node) -> None:
    """It would sample the base, and the log would say that it is guided."""
    tuned = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)[0]
    guider = _Past(run_node("RLGModel", base=base, tuned=tuned, scale=1.6)[0])
    guider.set_conds(conds(1), conds(2))
    guider.set_cfg(4.5)
    latent = torch.zeros(1, 16, SIZE, SIZE)
    sampler, seen = comfy.samplers.sampler_object("euler"), []
    with pytest.raises(ValueError, match=r"^model: _Past asks its model past ComfyUI's wrappers"):
        guider.sample(
            torch.ones_like(latent),
            latent,
            sampler,
            torch.linspace(1, 0, 6),
            callback=lambda *_: seen.append(1),
            disable_pbar=True,
        )
    assert len(seen) == 1, "the second step is none too many"


def test_a_sampler_may_call_back_before_it_predicts(base, other, run_node) -> None:
    """As solvers of ODEs of other packs do, at the beginning of each step."""

    def solved(
        model: Any, x: torch.Tensor, sigmas: torch.Tensor, callback: Callable, extra_args: dict, **_: Any
    ) -> Any:
        for i in range(len(sigmas) - 1):
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x})
            x0 = model(x, sigmas[i].expand(len(x)), **extra_args)
            x = x + (x - x0) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    found = []
    for model in (base, other):
        tuned = run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)[0]
        guider = comfy.samplers.CFGGuider(run_node("RLGModel", base=model, tuned=tuned, scale=1.6)[0])
        guider.set_conds(conds(1), conds(2))
        guider.set_cfg(4.5)
        latent = torch.zeros(1, 16, SIZE, SIZE)
        sampler = comfy.samplers.KSAMPLER(solved) if model is base else comfy.samplers.sampler_object("euler")
        sigmas = torch.linspace(1, 0, 4)
        found.append(guider.sample(torch.ones_like(latent), latent, sampler, sigmas, disable_pbar=True))
    assert relative(*found) < CLOSE


def _first_half(forward: Callable) -> Callable:
    """A forward of a pack that takes the first half of the rows for the prompt's."""

    def halved(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = forward(x, *args, **kwargs).clone()
        out[: len(out) // 2] *= 1.1
        return out

    return halved


def _with_a_block_s_forward(model: Any) -> Any:
    model, name = model.clone(), "diffusion_model.joint_blocks.0.x_block.mlp.fc2.forward"
    model.add_object_patch(name, _first_half(comfy.utils.get_attr(model.model, name)))
    return model


@pytest.mark.parametrize("batching", ["auto", "one batch"])
def test_a_block_s_forward_sees_the_rows_of_one_model(base, other, run_node, batching) -> None:
    """As KJNodes' WanVideoNAG replaces it: of both models' rows it would take the base's for the prompt's."""
    patched, patched_other = map(_with_a_block_s_forward, (base, other))
    tuned, tuned_other = (
        run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)[0]
        for model in (patched, patched_other)
    )
    inputs = task(steps=2)
    ours = run_node("RLGKSampler", base=patched, tuned=tuned, scale=1.6, batching=batching, **inputs)[0]["samples"]
    assert relative(ours, two_models(patched, tuned_other, 1.6, **inputs)) < CLOSE


@pytest.mark.parametrize("others", [True, False])
def test_a_model_s_forward_sees_the_rows_of_one_model(base, other, run_node, monkeypatch, caplog, others) -> None:
    """Where a pack has replaced it by its own; some leave the model's own there, which is no reason for two passes."""
    for model in (base, other):
        own = model.model.diffusion_model.forward
        monkeypatch.setattr(model.model.diffusion_model, "forward", _first_half(own) if others else own)
    tuned, tuned_other = (
        run_node("RLGLoadLora", model=model, lora_name="surroundings", strength=1.0)[0] for model in (base, other)
    )
    inputs = task(steps=2)
    with caplog.at_level("INFO"):
        ours = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **inputs)[0]["samples"]
    assert ("branches in one batch" in caplog.text) == (not others)
    assert relative(ours, two_models(base, tuned_other, 1.6, **inputs)) < CLOSE


class _Wrapped(torch.nn.Module):
    """As a pack wraps its own kind of model, which others share; what a LoRA changes is noted in the wrapper."""

    def __init__(self, inner: torch.nn.Module, added: float) -> None:
        super().__init__()
        self.inner, self.added, self.dtype = inner, added, inner.dtype

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.inner(x, *args, **kwargs) + self.added * x


def _wrapped(model: Any, added: float) -> Any:
    patcher, whole = model.clone(), copy.copy(model.model)
    whole._modules = {**whole._modules, "diffusion_model": _Wrapped(model.model.diffusion_model, added)}
    patcher.model, patcher.parent = whole, None
    return patcher


def test_one_set_of_weights_in_two_wrappers_is_a_pair(run_node) -> None:
    """As Nunchaku's LoRA loader makes them: the weights are equal, and what is computed is not."""
    family = FAMILIES["Flux"]
    (base, tuned), (stock, stock_tuned) = (
        [_wrapped(model, added) for added in (0.0, 0.1)] for model in (family.load(), family.load())
    )
    inputs = family.task(steps=2, scheduler="sgm_uniform")
    ours = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **inputs)[0]["samples"]
    assert relative(ours, two_models(stock, stock_tuned, 1.6, **inputs)) < CLOSE


def _copying(model: Any) -> Any:
    """As packs that evaluate the model once more in a CFG function, with options of their own."""

    def evaluated_again(args: dict[str, Any]) -> list[torch.Tensor]:
        options = copy.deepcopy(args["model_options"])
        again = comfy.samplers.calc_cond_batch(
            args["model"], args["conds"][:1], args["input"], args["timestep"], options
        )
        return [0.5 * (args["conds_out"][0] + 0.9 * again[0]), *args["conds_out"][1:]]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(evaluated_again)
    return model


def test_options_that_a_patch_copies_deeply(check, plain, monkeypatch) -> None:
    """No model is copied with them, and the copies act on the weights of the model at hand."""
    copied = []
    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", lambda self, memo: copied.append(self) or self, raising=False)
    assert relative(check(_copying, _copying), plain) > 100 * CLOSE
    assert not copied


def test_what_works_on_whole_runs_on_the_tuned_model_alone_is_spoken_of(base, run_node, caplog) -> None:
    """It never runs: a run is the base's."""
    tuned = run_node("RLGLoadLora", model=base, lora_name="surroundings", strength=1.0)[0].clone()
    tuned.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "some_pack", lambda executor, *args, **kwargs: None)
    run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1))
    assert caplog.text.count("'some_pack' works on whole runs, and has no effect on the tuned MODEL alone") == 1
