"""Flow-GRPO as the trainer makes it: the reference's numbers, the same run whatever happens, nothing left behind."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import flow_grpo_reference
import pytest
import torch
import training_tasks as tasks

import tiny_rewards
from pairs import CLOSE, relative, task


@pytest.fixture(scope="module")
def checkpoint_path(models_dir: Path) -> Path:
    return tasks.tiny_checkpoint(models_dir, "training")


@pytest.fixture(scope="module")
def loaded(checkpoint_path: Path) -> tuple[Any, Any]:
    return tasks.load(checkpoint_path)


@pytest.fixture
def make(training, loaded):
    def trainer(
        checkpoint: Path | None = None,
        prompts: int = 2,
        settings: dict[str, Any] | None = None,
        reward: Any = None,
        model: Any = None,
        **method: Any,
    ):
        own_model, vae = loaded
        small = {"steps": 4, "groups": 2, "group_size": 4, "cfg": 2.0, **method}
        of = training.task.Task(
            *(model or own_model, vae, tasks.prompts_of(training, prompts), reward or tasks.Redness()),
            *(tasks.SIDE, tasks.SIDE),
        )
        own = training.trainer.Settings(**{"rank": 4, "learning_rate": 1e-2, "batch_size": 4, **(settings or {})})
        return training.trainer.Trainer(of, replace(training.presets.FLOW_GRPO, **small), own, checkpoint)

    return trainer


@pytest.fixture
def drawn_iteration(training):
    """An iteration as far as its gradients, which are kept, and everything that it came from."""

    def iteration(trainer: Any, number: int = 0) -> SimpleNamespace:
        seen = SimpleNamespace(gradients=[], ratios=[])
        own = training.policy_gradient.clipped_policy_loss

        def loss(ratio: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen.ratios.append(ratio.detach().clone())
            return own(ratio, *rest)

        def step() -> float:
            seen.gradients.append({name: p.grad.clone() for name, p in trainer.policy.parameters.items()})
            trainer._optimizer.zero_grad()
            return 0.0

        learner, rollouts = trainer._learner, trainer._learner._rollouts

        def kept(*arguments: Any) -> Any:
            drawn, scores = rollouts(*arguments)
            seen.drawn, seen.rewards = list(drawn.values()), trainer.task.sum.measured(scores)
            return drawn, scores

        with pytest.MonkeyPatch.context() as patch, training.gradients.training_mode():
            patch.setattr(training.policy_gradient, "clipped_policy_loss", loss)
            patch.setattr(learner, "_rollouts", kept)
            seen.learned = learner.iterate(number, step, lambda done: None)
        return seen

    return iteration


def _random_up(trainer: Any, size: float = 0.05) -> None:
    """A policy that is not its base."""
    for number, (name, parameter) in enumerate(trainer.policy.parameters.items()):
        if name.endswith(".up"):
            parameter.data.normal_(std=size, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_ratio_before_the_first_update_is_exactly_one(make, drawn_iteration, checkpointing) -> None:
    """Else the clip, of 1e-4, would see rounding and not learning."""
    trainer = make(settings={"checkpointing": checkpointing})
    _random_up(trainer)
    ratios = torch.cat(drawn_iteration(trainer).ratios)
    assert len(ratios) == 2 * 4 * 3 and torch.equal(ratios, torch.ones_like(ratios))


def test_the_clipped_share_is_that_of_ratios_outside_the_range(make, training, monkeypatch) -> None:
    """Of both updates: none in the first one, in the second those of a policy that has moved on."""
    ratios, own = [], training.policy_gradient.clipped_policy_loss
    monkeypatch.setattr(
        training.policy_gradient, "clipped_policy_loss", lambda r, *rest: ratios.append(r.detach()) or own(r, *rest)
    )
    trainer = make(clip_range=0.2)
    (entry,) = trainer.iterate(1)
    values = torch.cat(ratios)
    outside = (values < 0.8) | (values > 1.2)
    assert len(values) == 2 * 4 * 3 and 0 < outside.sum() < 12
    assert entry.clipped == pytest.approx(float(outside.sum()) / len(values))


class OneTied(tasks.Redness):
    """The same for all pictures of a prompt, so that none of them is better than another."""

    def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return torch.where(torch.tensor([p == "prompt 0" for p in prompts]), 0.5, super().score(images, prompts))


@pytest.mark.parametrize("reward", [tasks.Redness(), OneTied()], ids=["all differ", "one prompt's do not"])
def test_an_iteration_is_the_reference_s(
    make, training, loaded, checkpoint_path, drawn_iteration, tmp_path, reward
) -> None:
    """yifan123/flow_grpo on diffusers and PEFT, same latents: densities, advantages, KL and the LoRA's gradient.

    What is no better and no worse than the others of its prompt is left out, of the distance to the base too.
    """
    trainer = make(updates=1, kl_weight=0.04, reward=reward)
    _random_up(trainer)
    values = {name: parameter.detach() for name, parameter in trainer.policy.parameters.items()}
    training.lora_output.save_lora(trainer.policy, values, tmp_path, trainer.task.model, {})
    seen = drawn_iteration(trainer)
    with torch.inference_mode(False):
        theirs = flow_grpo_reference.Iteration(checkpoint_path, tmp_path, steps=4, cfg=2.0, noise_level=0.7)
        theirs.learn(seen.drawn, seen.rewards, trainer.task.prompts, kl_weight=0.04, clip_range=1e-4)
    for chunk, densities in zip(seen.drawn, theirs.densities, strict=True):
        ours = torch.stack([step.log_density for step in chunk.steps.values()])
        assert relative(ours, densities) < 1e-5
    assert seen.learned.kl == pytest.approx(theirs.kl, rel=1e-4)
    (ours,) = seen.gradients
    for name, gradient in theirs.gradients.items():
        # The file's matrix is scale · up.
        scale = trainer.policy.scale if name.endswith(".up") else 1.0
        # Zero in both where nothing reads a module's output, as the text's queries of the last block.
        assert (ours[name] - gradient * scale).abs().max() <= 1e-4 * (gradient * scale).abs().max(), name
    assert ours.keys() == theirs.gradients.keys()


class Blueness(tasks.Redness):
    def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return super().score(images.flip(-1), prompts)


@pytest.mark.parametrize("reward", ["redness", "a sum in standard deviations"])
def test_pictures_computed_in_parts_teach_the_same(rlg, make, drawn_iteration, reward) -> None:
    """Of four pictures computed three by three, the last is alone and has no standard deviation of its own."""
    parts = [(tasks.Redness(), 1.0), (Blueness(), 0.5)]
    chosen = None if reward == "redness" else rlg.module("rewards.combined").CombinedReward(parts, "standard deviation")
    together, apart = (make(updates=1, settings={"batch_size": size}, reward=chosen) for size in (4, 3))
    for trainer in (together, apart):
        _random_up(trainer)
    a, b = drawn_iteration(together), drawn_iteration(apart)
    assert relative(a.rewards, b.rewards) < CLOSE
    for name, gradient in a.gradients[0].items():
        assert (b.gradients[0][name] - gradient).abs().max() <= 1e-3 * gradient.abs().max(), name


def test_what_two_steps_have_in_common_is_kept_once(make, drawn_iteration, monkeypatch) -> None:
    """An iteration of the authors' size keeps tens of GB until its update."""
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)  # as from a GPU
    trainer = make(steps=5)
    for drawn in drawn_iteration(trainer).drawn:
        steps = [drawn.steps[index] for index in sorted(drawn.steps)]
        assert len(steps) > 2
        assert all(one.x_next is other.x for one, other in zip(steps, steps[1:], strict=False))


def test_pictures_that_do_not_fit_into_memory_until_the_update(make, monkeypatch) -> None:
    """The system would end ComfyUI without a word, late in the drawing."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 10**5)
    with pytest.raises(ValueError, match=r"^groups: 8 pictures per iteration take [\d.]+ GB of main memory with all"):
        make()


@pytest.mark.parametrize(
    "method", [{"steps": 5}, {"steps": 6, "trained_steps": 2}, {"steps": 6, "tail": (2, 5), "stages": 4}]
)
def test_the_room_that_is_asked_for_is_what_is_kept(make, training, drawn_iteration, monkeypatch, method) -> None:
    """Of the iteration that keeps the most: where the trained steps grow, hours after the first."""
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    asked: list[int] = []
    monkeypatch.setattr(training.policy_gradient, "check_room", lambda _, count, size, *__: asked.append(count * size))
    trainer = make(**method)
    drawn = drawn_iteration(trainer, 10).drawn
    latents = [t for d in drawn for s in d.steps.values() for t in (s.x, s.x_next, s.negative, s.base_mean)]
    kept = {t.data_ptr(): t.nbytes for t in (*latents, *(d.end for d in drawn))}
    kept_bytes = sum(kept.values())
    assert asked == [kept_bytes] or ("trained_steps" in method and kept_bytes <= asked[0] < 1.2 * kept_bytes)


def test_checkpointing_changes_nothing_but_memory(make, drawn_iteration) -> None:
    """So a run may go on where more or less memory is free, with the same result bit for bit."""
    gradients = []
    for checkpointing in (False, True):
        trainer = make(settings={"checkpointing": checkpointing})
        _random_up(trainer)
        gradients.append(drawn_iteration(trainer).gradients)
    for kept, again in zip(*gradients, strict=True):
        assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize(("updates", "again"), [(1, 0), (2, 3)])
def test_nothing_is_evaluated_twice(make, loaded, monkeypatch, updates, again) -> None:
    """Per chunk: each side of CFG once a step, the base's on trained steps; then the prompt's side with a gradient.

    CFG's other side follows only once the policy is another than the one that drew the pictures.
    """
    trainer, calls = make(updates=updates), []
    model = loaded[0].model
    own = model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda *a, **k: calls.append(torch.is_grad_enabled()) or own(*a, **k))
    next(trainer.iterate(1))
    before, chunks, steps, trained = 2, 2, 4, 3  # what a backward pass keeps, and whether there is one
    assert calls.count(True) == chunks * trained + before
    assert calls.count(False) == chunks * 2 * (steps + trained) + again + before


def _in_two_passes(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[type(trainer.policy).__module__]
    monkeypatch.setattr(module, "WRITE_INTO_A_VIEW", ())


def test_what_a_lora_adds_has_the_same_gradient_where_nothing_is_written_into_a_view(
    make, drawn_iteration, monkeypatch
) -> None:
    """As on Apple's GPUs, and in compiled models."""
    found = []
    for prepare in (lambda trainer: None, lambda trainer: _in_two_passes(trainer, monkeypatch)):
        trainer = make(settings={"checkpointing": False})
        prepare(trainer)
        _random_up(trainer)
        found.append(drawn_iteration(trainer).gradients)
    for fused, in_two in zip(*found, strict=True):
        for name in fused:
            torch.testing.assert_close(fused[name], in_two[name], rtol=1e-3, atol=1e-3 * float(fused[name].abs().max()))


_without_gradient = torch.library.custom_op(
    "rlg_test::without_gradient", torch.clone, mutates_args=(), schema="(Tensor x) -> Tensor"
)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_a_model_without_a_backward_pass_is_known_before_the_first_picture(make, loaded, checkpointing) -> None:
    """As newer hosts compute some families."""
    model = loaded[0].clone()
    model.set_model_unet_function_wrapper(
        lambda apply, args: _without_gradient(apply(args["input"], args["timestep"], **args["c"]))
    )
    trainer = make(model=model, settings={"checkpointing": checkpointing})
    reported: list[float] = []
    with pytest.raises(
        ValueError, match=r"^model: no gradient passes through SD3 in this ComfyUI \(.*\); train another"
    ):
        next(trainer.iterate(1, reported.append))
    assert reported == [] and trainer.history == []


class _Failing(torch.autograd.Function):
    """Its backward pass fails as a driver says it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, error: str) -> torch.Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        raise RuntimeError(ctx.error)


@pytest.mark.parametrize("error", [
    "CUDA error: an illegal memory access was encountered", "HIP error: unspecified launch failure",
    "miopenStatusUnknownError", "level_zero backend failed with error: UR_RESULT_ERROR_DEVICE_LOST",
])  # fmt: skip
def test_an_error_of_the_machine_is_not_put_on_the_model(make, loaded, error) -> None:
    """Of Nvidia's, AMD's and Intel's drivers: another model would not help."""
    model = loaded[0].clone()
    model.set_model_unet_function_wrapper(
        lambda apply, args: _Failing.apply(apply(args["input"], args["timestep"], **args["c"]), error)
    )
    with pytest.raises(RuntimeError, match=error.split(":")[0]):
        next(make(model=model).iterate(1))


def test_what_a_backward_pass_keeps_is_known_before(make, training, loaded, caplog, monkeypatch) -> None:
    """Where it does not fit into what the host has free, blocks are computed twice, and the log says so."""
    trainer = make(groups=1, group_size=4)
    host, shape = trainer._host, torch.Size((1, *trainer.task.latent_shape))

    def really(run: Any) -> int:
        saved: list[torch.Tensor] = []
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            out = run.x0(run.start(torch.zeros(shape)), 0)
        weights = {p.untyped_storage().data_ptr() for p in loaded[0].model.parameters()}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        assert out.requires_grad
        return sum(size for address, size in storages.items() if address not in weights)

    with caplog.at_level("INFO"):
        next(trainer.iterate(1))
    assert host._checkpointing is False and "a backward pass keeps" in caplog.text
    with training.gradients.training_mode():
        (kept, _), real = host.run(0, shape, lambda run: host._kept(run, shape, 1)), host.run(0, shape, really)
    assert real <= kept.whole <= 1.1 * real
    assert kept.checkpointed < 0.8 * kept.whole

    reserve = comfy.model_management.minimum_inference_memory()
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: reserve + 3 * kept.whole)
    short = make(groups=1, group_size=4)
    with caplog.at_level("INFO"):
        next(short.iterate(1))
    assert short._host._checkpointing is True and "blocks are computed twice" in caplog.text


def _run(trainer: Any, until: int) -> dict[str, torch.Tensor]:
    for _ in trainer.iterate(until):
        pass
    return {name: tensor.clone() for name, tensor in trainer._tensors().items()}


def _assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def _give_gradients(trainer: Any, norm: float) -> None:
    """Equal numbers everywhere, of that norm together."""
    parameters = trainer.policy.parameters.values()
    count = sum(parameter.numel() for parameter in parameters)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, norm / count**0.5)


def test_an_update_is_by_the_authors_numbers(make, training) -> None:
    """Flow-GRPO's config/base.py: AdamW with a weight decay of 1e-4, on gradients of a norm of 1 at most."""
    trainer, norms = make(settings={"learning_rate": 1.0}), []

    def note(*_: Any) -> None:
        gradients = [p.grad for p in trainer.policy.parameters.values()]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    trainer._optimizer.register_step_pre_hook(note)
    start = {name: p.detach().clone() for name, p in trainer.policy.parameters.items()}
    with training.gradients.training_mode():
        found = []
        for norm in (0.0, 0.5, 50.0):
            _give_gradients(trainer, norm)
            found.append(trainer._step())
            if norm == 0.0:  # what is left is the decay
                for name, parameter in trainer.policy.parameters.items():
                    torch.testing.assert_close(parameter.detach(), (1 - 1e-4) * start[name], rtol=1e-6, atol=0)
    assert norms == pytest.approx([0.0, 0.5, 1.0], rel=1e-4)
    assert found == pytest.approx([0.0, 0.5, 50.0], rel=1e-4)


def test_the_averaged_lora_is_the_reference_s(make, training) -> None:
    """flow_grpo's ema.py: update n leaves (1 + n) / (10 + n) of an old value, or the method's decay if that is less."""
    trainer = make(average_decay=0.2)

    def values() -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in trainer.policy.parameters.items()}

    seen = [values()]
    with training.gradients.training_mode():
        for _ in range(3):
            _give_gradients(trainer, 1.0)
            trainer._step()
            seen.append(values())
    for name, average in trainer._average.items():
        first, one, two, three = (each[name] for each in seen)
        expected = 0.2 * (2 / 11 * (0.1 * first + 0.9 * one) + 9 / 11 * two) + 0.8 * three
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(average, three, rtol=1e-3, atol=0)


def test_a_resumed_run_is_the_undisturbed_one(make, tmp_path) -> None:
    undisturbed = _run(make(), 3)
    _run(make(tmp_path / "state"), 1)
    resumed = make(tmp_path / "state")
    assert len(resumed.history) == 1 and resumed.started_anew == ""
    _assert_equal(_run(resumed, 3), undisturbed)


def test_a_state_that_takes_long_to_write_is_written_less_often(make, training, tmp_path, monkeypatch) -> None:
    """A large LoRA's takes seconds, which would be a good part of every half minute."""
    clock, written = SimpleNamespace(now=0.0), []

    def write(state: Any, path: Path) -> None:
        written.append((clock.now, state.iteration))
        clock.now += 4.0

    class Slow(tasks.Redness):
        def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            clock.now += 10.0
            return super().score(images, prompts)

    monkeypatch.setattr(training.trainer.State, "write", write)
    monkeypatch.setattr(training.trainer.time, "monotonic", lambda: clock.now)
    trainer = make(tmp_path / "state", reward=Slow(), groups=1)
    for _ in trainer.iterate(15):
        pass
    (first, none), *between, (_, last) = written
    assert (none, last) == (0, 15) and len(between) == 1
    assert between[0][0] - first > 30 * 4.0


def test_cancel_keeps_what_was_learned(make, tmp_path) -> None:
    """In the middle of an iteration, after its first update: what is kept is the state after the last whole one."""
    interrupted = make(tmp_path / "state")
    step, steps = interrupted._step, []

    def cancelled() -> float:
        steps.append(step())
        if len(steps) == 3:
            raise comfy.model_management.InterruptProcessingException()
        return steps[-1]

    interrupted._step = cancelled
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        _run(interrupted, 3)
    _assert_equal({n: t.clone() for n, t in interrupted._tensors().items()}, _run(make(), 1))
    _assert_equal(_run(make(tmp_path / "state"), 2), _run(make(), 2))


def test_another_setting_starts_anew_and_says_so(make, tmp_path) -> None:
    """And loses nothing: with the old setting the earlier run goes on, and so does the other one after it."""
    kept = _run(make(tmp_path / "state"), 2)
    other = {"learning_rate": 2e-2}
    anew = make(tmp_path / "state", settings=other)
    assert anew.history == [] and "learning_rate 0.01 → 0.02" in anew.started_anew
    assert "2 iterations are kept" in anew.started_anew
    _run(anew, 1)
    back = make(tmp_path / "state")
    assert len(back.history) == 2 and back.started_anew == ""
    _assert_equal(_run(back, 2), kept)
    assert len(make(tmp_path / "state").history) == 2
    assert len(make(tmp_path / "state", settings=other).history) == 1


def test_a_run_of_a_version_that_had_a_setting_more_goes_on(make) -> None:
    """Checkpoints of then know an `alpha`, which nobody could set."""
    assert make().fingerprint["alpha"] == "None"


def test_a_change_of_weights_is_told_in_few_letters(make, training, rlg, reward_models, tmp_path) -> None:
    """The name of the input, and the beginning of each hash."""
    one, another = _aesthetics(rlg, reward_models)
    _run(make(tmp_path / "state", reward=one), 1)
    told = make(tmp_path / "state", reward=another).started_anew
    assert re.search(r"settings changed: reward_weights [0-9a-f]{8} → [0-9a-f]{8}\. Its 1 iterations", told), told


def test_a_run_that_ran_out_of_memory_goes_on_with_smaller_batches(make, tmp_path) -> None:
    _run(make(tmp_path / "state"), 1)
    assert len(make(tmp_path / "state", settings={"batch_size": 1, "checkpointing": True}).history) == 1


@pytest.mark.parametrize("other", ["negative", "clip", "vae", "shift", "normalise", "head", "part"])
def test_another_input_makes_another_run(make, training, rlg, loaded, reward_models, other) -> None:
    """All that changes what is learned, not the settings alone."""
    before, after = make(), make()
    model, vae = loaded
    of = after.task
    if other == "negative":
        changed = {"prompts": replace(of.prompts, negative_text="blurry")}
    elif other == "clip":
        changed = {"prompts": replace(of.prompts, encoder="another")}
    elif other == "vae":
        weights = {**tasks.vae_state_dict()}
        weights["taesd_decoder.1.weight"] = weights["taesd_decoder.1.weight"] + 1
        changed = {"vae": comfy.sd.VAE(sd=weights)}
    elif other == "shift":
        (shifted,) = rlg.nodes["ModelSamplingSD3"]().patch(model, 5.0)
        changed = {"model": shifted}
    elif other in ("head", "part"):
        rewards = _aesthetics(rlg, reward_models)
        if other == "part":
            rewards = [rlg.module("rewards.combined").CombinedReward([(one, 1.0)], "none") for one in rewards]
        before, changed = _with(training, before, {"reward": rewards[0]}), {"reward": rewards[1]}
    else:
        combined = rlg.module("rewards.combined").CombinedReward
        parts = [(tasks.Redness(), 1.0)]
        before = _with(training, before, {"reward": combined(parts, "none")})
        changed = {"reward": combined(parts, "standard deviation")}
    fingerprints = [trainer.fingerprint for trainer in (before, _with(training, after, changed))]
    assert fingerprints[0] != fingerprints[1]


def test_a_reward_counts_for_the_prompts_that_it_reads(make, rlg, drawn_iteration) -> None:
    """As in joint training: the group of the other prompt is compared by the other reward alone."""

    class First(tasks.Redness):
        def check_prompts(self, prompts: Any) -> None:
            if any(prompt != "prompt 0" for prompt in prompts):
                raise ValueError("prompts: another.")

        def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            self.check_prompts(prompts)
            return 10.0 + super().score(images, prompts)

    combined = rlg.module("rewards.combined").CombinedReward
    reward = combined([(tasks.Redness(), 1.0), (First(), 2.0)], "none", "leave out")
    alone, both = drawn_iteration(make()), drawn_iteration(make(reward=reward))
    for plain, of_both, drawn in zip(alone.rewards.split(4), both.rewards.split(4), both.drawn, strict=True):
        counted = drawn.prompt == 0
        torch.testing.assert_close(of_both, 3 * plain + 20 if counted else plain)


def _aesthetics(rlg: SimpleNamespace, folder: Path) -> list[Any]:
    """Two rewards of one name that differ in the weights of their head."""
    tiny_rewards.write_clip_l(folder)
    for seed in range(2):
        torch.save(tiny_rewards.head_state(tiny_rewards.JOINT, seed), folder / f"head{seed}.pth")
    return [rlg.module("rewards.registry").load("aesthetic", f"head{seed}.pth") for seed in range(2)]


def _with(training: SimpleNamespace, trainer: Any, changed: dict[str, Any]) -> Any:
    return training.trainer.Trainer(replace(trainer.task, **changed), trainer.method, trainer.settings)


def test_the_base_model_is_left_as_it_was(make, loaded, run_node) -> None:
    """Bit for bit, and without gradients, replaced forwards or weights; after errors too."""
    model, _ = loaded

    def picture() -> torch.Tensor:
        return run_node("KSampler", model=model, **task())[0]["samples"]

    before, weights = picture(), dict(model.model.named_parameters())
    flags = {name: (id(weight), weight.requires_grad) for name, weight in weights.items()}
    trainer = make()
    _run(trainer, 1)
    trainer.task.reward.score = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        _run(trainer, 2)
    assert torch.equal(picture(), before)
    assert {name: (id(w), w.requires_grad) for name, w in model.model.named_parameters()} == flags
    assert all(weight.grad is None for weight in weights.values())
    assert not any("forward" in module.__dict__ for module in model.model.modules())


def test_the_reward_rises(make) -> None:
    """By many times the spread between pictures, which is 0.01; that of the averaged LoRA, which is kept, too."""
    settings = {"learning_rate": 1e-2, "batch_size": 8, "checkpointing": False}
    trainer = make(prompts=1, settings=settings, groups=1, group_size=8, updates=1, cfg=1.0, kl_weight=0.0)
    rewards = [entry.reward for entry in trainer.iterate(6)]
    assert rewards[-1] > rewards[0] + 0.15
    base, tuned = (
        trainer.task.scores(trainer.pictures(trainer.task.prompts, 5, tuned), [0])[0, 0] for tuned in (False, True)
    )
    assert tuned > base + 0.1


def test_scores_that_are_no_numbers_are_refused(make) -> None:
    trainer = make()
    trainer.task.reward.score = lambda images, _: torch.full((len(images),), torch.nan)
    with pytest.raises(ValueError, match=r"^reward: redness gave nan for a picture of 'prompt \d', .*\.$"):
        _run(trainer, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size: 1 picture per prompt has none"),
        ({"window": 3, "window_start": 7}, "window: 3 steps from step 7 on do not fit"),
        ({"noise_level": 0.0}, "noise_level: "),
        ({"steps": 1}, "steps: "),
    ],
)
def test_methods_that_cannot_be_are_refused(training, settings, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}.*\\.$"):
        replace(training.presets.FLOW_GRPO, **settings)
