"""DDPO, B²-DiffuRL and the reward gradients: their references' numbers, on flow and ε models; all methods resumed."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
import training_tasks as tasks

from pairs import FAMILIES

SIDE = tasks.SIDE


@pytest.fixture(scope="module")
def models(models_dir: Path) -> dict[str, tuple[Any, Any]]:
    with torch.inference_mode():
        unet = FAMILIES["SD1.5"].load(), tasks.four_channels()
    return {"SD3": tasks.load(tasks.tiny_checkpoint(models_dir, "other-methods")), "SD1.5": unet}


class ByWord(tasks.Redness):
    """A reward that reads its prompts: each likes a colour of its own."""

    def gradient_score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        seeds = (zlib.crc32(prompt.encode()) for prompt in prompts)
        colours = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return (images.mean(dim=(1, 2)) * colours).sum(dim=-1)


class Tied(tasks.Redness):
    """All pictures are as good, so that there is nothing to learn from them."""

    def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return torch.full((len(images),), 0.5)


@pytest.fixture
def make(training, models):
    def trainer(
        method: Any, family: str = "SD3", checkpoint: Path | None = None, rate: float = 1e-2, reward: Any = None
    ) -> Any:
        model, vae = models[family]
        images = torch.rand(2, 80, 96, 3, generator=torch.Generator().manual_seed(1))
        texts = tasks.texts_of(training, family)
        of = training.task.Task(model, vae, texts, reward or tasks.Redness(), SIDE, SIDE, images)
        settings = training.trainer.Settings(rank=4, learning_rate=rate, batch_size=5, checkpointing=False)
        return training.trainer.Trainer(of, method, settings, checkpoint)

    return trainer


def small_methods(training: SimpleNamespace) -> dict[str, Any]:
    """Each method, small."""
    of, small = training.presets, {"steps": 6, "groups": 2}
    reward = {**small, "first_step": 3, "last_step": 4}
    return {
        "DDPO": replace(of.DDPO, **small, group_size=3, trained_steps=2, cfg=2.0, image_weight=0.1),
        "B²-DiffuRL": replace(of.B2_DIFFU_RL, **small, cfg=2.0, tail=(3, 6), stages=4),
        "DiffusionNFT": replace(of.DIFFUSION_NFT, **small, group_size=3, trained_steps=2, lag_growth=0.3),
        "Flow-GRPO-Fast": replace(of.FLOW_GRPO, **small, group_size=3, window=2, window_start=2, cfg=2.0),
        "ReFL": replace(of.REFL, **reward),
        "ImageReFL": replace(of.IMAGE_REFL, **reward, image_step=2, reward_weight=0.5, image_weight=0.3),
        "DRaFT-K": replace(of.draft_k(2, 6), groups=2),
        "SRPO": replace(of.SRPO, **small, wanted=("Real",), unwanted=("Painting", "Anime")),
    }


METHODS = ("DDPO", "B²-DiffuRL", "DiffusionNFT", "Flow-GRPO-Fast", "ReFL", "ImageReFL", "DRaFT-K", "SRPO")


def _run(trainer: Any, until: int) -> dict[str, torch.Tensor]:
    for entry in trainer.iterate(until):
        assert all(value == value for value in vars(entry).values()), entry
    return {name: tensor.clone() for name, tensor in trainer._tensors().items()}


@pytest.mark.parametrize("family", ["SD3", "SD1.5"])
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_undisturbed_one(training, make, tmp_path, name, family) -> None:
    method = small_methods(training)[name]
    undisturbed = _run(make(method, family), 2)
    _run(make(method, family, tmp_path / "state"), 1)
    resumed = _run(make(method, family, tmp_path / "state"), 2)
    assert [n for n in undisturbed if not torch.equal(undisturbed[n], resumed[n])] == []
    assert any(tensor.any() for n, tensor in resumed.items() if n.startswith("policy.") and n.endswith(".up"))


@pytest.mark.parametrize("name", ["ReFL", "DRaFT-K"])
def test_reward_gradients_raise_the_reward(training, make, name) -> None:
    rewards = [entry.reward for entry in make(replace(small_methods(training)[name], groups=1)).iterate(6)]
    assert rewards[-1] > rewards[0] + 0.1


def _gradients(trainer: Any) -> dict[str, torch.Tensor]:
    """Of the first iteration of a policy that is not its base."""
    for number, (name, parameter) in enumerate(trainer.policy.parameters.items()):
        if name.endswith(".up"):
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    kept: dict[str, torch.Tensor] = {}

    def step() -> float:
        kept.update({n: p.grad.clone() for n, p in trainer.policy.parameters.items() if p.grad is not None})
        trainer._optimizer.zero_grad()
        return 0.0

    trainer._step = step
    next(iter(trainer.iterate(1)))
    return kept


def test_the_loss_on_real_images_is_of_the_prediction_for_the_prompt(training, make) -> None:
    """As pinterest/atg-research trains: with CFG 7 the guided prediction is no estimate of the noise."""
    guided, plain = (make(replace(small_methods(training)["DDPO"], cfg=cfg)) for cfg in (7.0, 1.0))
    found = []
    for trainer in (guided, plain):
        with training.gradients.training_mode():
            gradients = training.gradient_sum.GradientSum(trainer.policy.parameters.values())
            found.append(trainer._learner._near_images(0, 0, gradients))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] > 0.0


@pytest.mark.parametrize("family", ["SD3", "SD1.5"])
def test_the_gradient_on_real_images_is_that_of_one_graph(training, make, family) -> None:
    """Where all pictures are as good it is all there is: a weight times the mean loss on an image for each group."""
    method = replace(small_methods(training)["DDPO"], groups=3, updates=1, image_weight=0.4)
    ours, trainer = make(method, family, reward=Tied()), make(replace(method, cfg=1.0), family)
    mine = _gradients(ours)
    _gradients(trainer)  # for the same policy
    losses = []
    for group in range(3):
        generator = _stream(training, 0, "image", 0, 0, group)
        prompt, index = (int(torch.randint(count, (1,), generator=generator)) for count in (2, method.steps))
        noise = torch.randn(1, *trainer.task.latent_shape, generator=generator)

        def loss(run: Any, prompt: int = prompt, index: int = index, noise: torch.Tensor = noise) -> torch.Tensor:
            clean = trainer.task.encoded(prompt)
            noisy = run.start(noise, clean, index)
            with torch.enable_grad():
                predicted = (noisy - run.x0(noisy, index)) / run.sigmas[index]  # noise, or velocity of a flow
                return ((predicted - (noise if family == "SD1.5" else noise - clean)) ** 2).mean()

        with training.gradients.training_mode():
            losses.append(trainer._host.run(prompt, noise.shape, loss))
    with training.gradients.training_mode(), torch.enable_grad():
        mean = sum(losses) / 3
        (method.image_weight * mean).backward()
    assert ours.history[0].diffusion == pytest.approx(float(mean), rel=1e-4)
    theirs = {n: p.grad for n, p in trainer.policy.parameters.items() if p.grad is not None}
    assert theirs.keys() == mine.keys()
    for parameter, gradient in theirs.items():
        assert (mine[parameter] - gradient).abs().max() <= 1e-3 * gradient.abs().max(), parameter


def test_a_vae_that_left_the_gpu_for_the_reward_comes_back(training, make) -> None:
    """Scoring moves its weights: what was computed with them before must not be needed any more."""
    trainer = make(small_methods(training)["ReFL"])
    expected, task = _gradients(trainer), trainer.task
    again = make(small_methods(training)["ReFL"], reward=_Evicting(task.vae.first_stage_model))
    for name, gradient in _gradients(again).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=0)


def test_vae_and_reward_take_turns_once_whatever_the_number_of_pictures(training, make, monkeypatch) -> None:
    """Where memory is short each turn moves whole models."""
    trainer, loads = make(small_methods(training)["ReFL"]), []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda models, **rest: loads.append(models) or load(models, **rest)
    )
    latents = torch.randn(3, *trainer.task.latent_shape, generator=torch.Generator().manual_seed(2))
    with training.gradients.training_mode():
        scores, gradients = trainer.task.scored_with_gradient(latents, [("a", 1.0)])
    assert scores.shape == (3, 1) and gradients.shape == latents.shape and gradients.any(dim=(1, 2, 3)).all()
    assert loads == 2 * [[trainer.task.vae.patcher]]


def test_a_method_says_whether_gradients_pass_through_the_negative_prompt(training, make) -> None:
    """Reward gradients do as their authors' code, Flow-GRPO's takes that side for a constant."""
    method = replace(small_methods(training)["ReFL"], cfg=3.0)
    without, through = (_gradients(make(replace(method, through_negative=on))) for on in (False, True))
    assert any(not torch.allclose(through[name], without[name], rtol=1e-2) for name in without)


def test_a_vae_keeps_its_blocks_inputs_alone(training, make, monkeypatch) -> None:
    """All that it computes at 1024² are 12 GB. Each block is computed twice; the gradient is the same, bit for bit."""
    task = make(small_methods(training)["ReFL"]).task
    latents = torch.randn(1, *task.latent_shape, generator=torch.Generator().manual_seed(2))
    blocks = [m for m in task.vae.first_stage_model.taesd_decoder.modules() if type(m).__name__ == "Block"]
    calls: list[bool] = []
    hooks = [block.conv[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled())) for block in blocks]
    found = []
    for context in (training.blocks.checkpointed_decoder, contextlib.nullcontext):
        monkeypatch.setattr(training.task, "checkpointed_decoder", context)
        calls.clear()
        with training.gradients.training_mode():
            found.append(task.scored_with_gradient(latents, [("a", 1.0)])[1])
        assert calls.count(True) == len(blocks) * (2 if context is not contextlib.nullcontext else 1)
    for hook in hooks:
        hook.remove()
    assert torch.equal(*found) and found[0].any()


@pytest.mark.parametrize(("family", "times"), [("Qwen-Image", 4), ("SD3", 2)])
def test_room_is_made_for_what_a_vae_keeps(training, models, monkeypatch, family, times) -> None:
    """Those of videos keep all that their blocks compute, and so does what is asked of the host."""
    model, vae = models["SD3"]
    if family != "SD3":
        with torch.inference_mode():
            model = FAMILIES[family].load()
        decode = vae.first_stage_model.decode
        monkeypatch.setattr(vae.first_stage_model, "decode", lambda latents: decode(latents[:, :, 0]))
    task = training.task.Task(model, vae, tasks.texts_of(training, family), tasks.Redness(), SIDE, SIDE)
    asked: list[float] = []
    monkeypatch.setattr(vae, "memory_used_decode", lambda *_: 1000)
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda _, memory_required=0, **rest: asked.append(memory_required)
    )
    with training.gradients.training_mode():
        task.scored_with_gradient(torch.zeros(1, *task.latent_shape), [("a", 1.0)])
    assert asked == [1000, times * 1000]


@pytest.mark.parametrize("family", ["Qwen-Image", "Wan"])
def test_gradients_pass_latents_that_are_scaled_by_tensors(training, models, monkeypatch, family) -> None:
    """A loader makes these in inference mode, and they are no part of the model's weights."""
    with torch.inference_mode():
        model = FAMILIES[family].load()
    _, vae = models["SD3"]
    decode = vae.first_stage_model.decode
    monkeypatch.setattr(vae.first_stage_model, "decode", lambda latents: decode(latents[:, :, 0]))
    task = training.task.Task(model, vae, tasks.texts_of(training, family), tasks.Redness(), SIDE, SIDE)
    latents = torch.randn(2, *task.latent_shape, generator=torch.Generator().manual_seed(2))
    with training.gradients.training_mode():
        _, gradients = task.scored_with_gradient(latents, [("a", 1.0)])
    assert gradients.shape == latents.shape and torch.isfinite(gradients).all() and gradients.any()


class _Evicting(tasks.Redness):
    """Moves the weights of a model whenever it scores, and leaves nothing useful where they were."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def gradient_score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        with torch.inference_mode():
            for weight in self._model.parameters():
                kept = weight.data.clone()
                weight.data.fill_(float("nan"))
                weight.data = kept
        return super().gradient_score(images, prompts)


def test_a_gradient_that_is_no_number_is_not_taken_up(training, make, monkeypatch) -> None:
    trainer = make(small_methods(training)["DDPO"])
    next(iter(trainer.iterate(1)))
    before = {name: tensor.clone() for name, tensor in trainer._tensors().items()}
    own = training.policy_gradient.clipped_policy_loss
    monkeypatch.setattr(training.policy_gradient, "clipped_policy_loss", lambda *args: own(*args) * float("inf"))
    with pytest.raises(ValueError, match=r"^learning_rate: the gradient of iteration 2 is no number.*\.$"):
        list(trainer.iterate(3))
    assert len(trainer.history) == 1
    after = trainer._tensors()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("family", ["SD3", "SD1.5"])
@pytest.mark.parametrize("name", ["ReFL", "ImageReFL", "DRaFT-K"])
def test_a_reward_gradient_is_that_of_one_graph(training, make, models, name, family) -> None:
    """ControlGenAI/ImageReFL's loss: λ · (w · error of the noise on the image − reward of the decoded x0), in one go.

    The trainer takes it apart, so that model and VAE are not needed at once.
    """
    method = replace(small_methods(training)[name], groups=1)
    ours, trainer = make(method, family), make(method, family)
    mine = _gradients(ours)
    _gradients(trainer)  # for the same policy
    (prompt,), index = trainer.task.prompts.chosen(0, 0, 1), method.step(0, 0, 0)
    vae, model = trainer.task.vae, trainer.task.model
    start = torch.randn(1, *trainer.task.latent_shape, generator=_stream(training, 0, "pictures", 0, 0, 0))

    def loss(run: Any) -> None:
        with torch.no_grad():
            clean = trainer.task.encoded(prompt) if method.from_images else None
            begin = method.image_step if method.from_images else 0
            x = noisy = run.start(start, clean, begin)
            for step in range(begin, index):
                x = _euler(run, x, step)
        with torch.enable_grad(), training.gradients.frozen(vae.first_stage_model):
            for step in range(index, index + method.gradient_steps - 1):
                x = _euler(run, x, step)
            x0 = run.x0(x, index + method.gradient_steps - 1)
            images = vae.first_stage_model.decode(model.model.process_latent_out(x0).to(vae.vae_dtype)).float()
            images = ((images + 1) / 2).clamp(0, 1)
            total = -trainer.task.reward.gradient_score(images.movedim(1, -1), [""]).mean()
            if method.image_weight:
                sigma = run.sigmas[method.image_step]
                predicted = (noisy - run.x0(noisy, method.image_step)) / sigma  # noise, or velocity of a flow
                target = start if family == "SD1.5" else start - clean
                total = total + method.image_weight * ((predicted - target) ** 2).mean()
            (method.reward_weight * total).backward()

    with training.gradients.training_mode():
        trainer._host.run(prompt, start.shape, loss)
    theirs = {n: p.grad for n, p in trainer.policy.parameters.items() if p.grad is not None}
    assert theirs.keys() == mine.keys()
    for parameter, gradient in theirs.items():
        assert (mine[parameter] - gradient).abs().max() <= 1e-3 * gradient.abs().max(), parameter


@pytest.mark.parametrize("from_images", [False, True])
@pytest.mark.parametrize("family", ["SD3", "SD1.5"])
def test_srpo_s_gradient_is_that_of_the_reference(training, make, family, from_images) -> None:
    """The loop of Tencent-Hunyuan/SRPO's SRPO.py as its formulas say, in one graph: both branches, steps and words.

    In the latents that a family's own papers use, α·x0 + s·ε: flow models have α = 1 − σ and s = σ, ε models
    α² + s² = 1 (the reference trains a flow model; arXiv 2509.06942 has the formula for both).
    """
    method = replace(small_methods(training)["SRPO"], groups=1, from_images=from_images)
    ours, trainer = make(method, family, reward=ByWord()), make(method, family, reward=ByWord())
    mine = _gradients(ours)
    _gradients(trainer)  # for the same policy
    (prompt,), latents = trainer.task.prompts.chosen(0, 0, 1), trainer.task.latent_shape
    noise = torch.randn(1, *latents, generator=_stream(training, 0, "pictures", 0, 0, 0))
    vae, model, text = trainer.task.vae, trainer.task.model, trainer.task.prompts.texts[prompt]
    sampling, count = model.get_model_object("model_sampling"), 1000
    _, middle, _ = method.levels(0, 0, 0)
    mid = middle * count
    stride = min(0.1 * count, count - mid, mid)
    most, least = sampling.percent_to_sigma(0.1), sampling.percent_to_sigma(0.5)

    def sigma_at(timestep: float) -> torch.Tensor:
        return torch.tensor(most + (least - most) * timestep / count)

    def discount(first: float, last: float, timestep: float) -> float:
        return first + (last - first) * timestep / count

    def scale(sigma: torch.Tensor) -> torch.Tensor:
        return 1 - sigma if family == "SD3" else (1 + sigma**2) ** -0.5

    def picture(run: Any, clean: torch.Tensor, start: float, end: float) -> torch.Tensor:
        sigma, sigma_end = sigma_at(start), sigma_at(end)
        run = replace(run, sigmas=sigma[None])
        if family == "SD3":
            noisy = sigma * noise + (1 - sigma) * clean
            velocity = (noisy - run.x0(noisy, 0)) / sigma
            recovered = (noisy + (sigma_end - sigma) * velocity - sigma_end * noise) / (1 - sigma_end)
        else:
            alpha, alpha_end = scale(sigma), scale(sigma_end)
            noisy = alpha * clean + alpha * sigma * noise
            x0 = run.x0(noisy / alpha, 0)
            direction = (noisy - alpha * x0) / (alpha * sigma)
            moved = alpha_end * x0 + alpha_end * sigma_end * direction
            recovered = (moved - alpha_end * sigma_end * noise) / alpha_end
        images = vae.first_stage_model.decode(model.model.process_latent_out(recovered).to(vae.vae_dtype)).float()
        return ((images + 1) / 2).clamp(0, 1).movedim(1, -1)

    def loss(run: Any) -> None:
        with torch.no_grad():
            clean, x = trainer.task.encoded(prompt), run.start(noise)
            if not from_images:
                for step in range(method.steps):
                    x = _euler(run, x, step)
                clean = x
        with torch.enable_grad(), training.gradients.frozen(vae.first_stage_model):
            wanted, unwanted = (lambda im, w=w: ByWord().gradient_score(im, [f"{w}. {text}"]) for w in method.words(0))
            for inversion in (1, 0):
                at = mid if inversion else mid - stride
                start, base = count - (at + stride), count - at
                if inversion:
                    image, k = picture(run, clean, start, base), discount(0.1, 0.25, at)
                    output = (1 + k) * wanted(image) - unwanted(image)
                else:
                    image, k = picture(run, clean, base, start), discount(0.3, 0.01, at)
                    output = (1 + k) * unwanted(image) - wanted(image)
                (-output.mean() / 2).backward()

    with training.gradients.training_mode():
        trainer._host.run(prompt, noise.shape, loss)
    theirs = {n: p.grad for n, p in trainer.policy.parameters.items() if p.grad is not None}
    assert theirs.keys() == mine.keys()
    for parameter, gradient in theirs.items():
        assert (mine[parameter] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), parameter


@pytest.mark.parametrize("family", ["SD3", "SD1.5"])
def test_srpo_recovers_the_picture_at_any_noise(training, models, family) -> None:
    """Exactly, if the model is right; else with its error times the way that the step went."""
    sampling = models[family][0].get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(percent) for percent in (0.02, 0.1, 0.2)])
    generator = torch.Generator().manual_seed(2)
    clean, noise, error = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    for size in (0.0, 0.5):
        predicted = training.host_model.Prediction(clean + size * error, clean, clean)
        run = training.host_model.Run(sigmas, sampling, clean.device, lambda x, sigma, negative, p=predicted: p)
        for start in (0, 2):
            found = training.direct_align._recovered(run, clean, noise, start)
            way = 1 - sigmas[1] / sigmas[start]
            signal = 1 - sigmas[1] if family == "SD3" else 1.0
            assert torch.allclose(found, clean + size * error * way / signal, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["SD3", "SD1.5"])
def test_srpo_learns_at_all_noise_levels(training, make, family) -> None:
    """The host's percentages 0 and 1 are no noise levels: 999999999.9 for ε models, and 0, which no step leaves."""
    whole = {"start_percent": 0.0, "end_percent": 1.0, "stride": 0.5}  # so that a step of each group begins at an end
    trainer = make(replace(small_methods(training)["SRPO"], **whole, groups=4, wanted_weight=(2.0, 2.0)), family)
    sampling = trainer.task.model.get_model_object("model_sampling")
    ends = sorted(trainer._learner._sigmas((1.0, 0.5, 0.0)).tolist())
    assert (ends[0], ends[-1]) == (pytest.approx(float(sampling.sigma_min)), pytest.approx(float(sampling.sigma_max)))
    starts = {level for group in range(4) for level in trainer.method.levels(0, 0, group)}
    assert {0.0, 1.0} <= {round(level, 6) for level in starts}
    (entry,) = trainer.iterate(1)
    assert 0.0 < entry.gradient < 1e6


@pytest.mark.parametrize("name", ["DDPO", "SRPO"])
def test_prompts_are_chosen_as_often_whatever_the_number_of_parts(training, make, monkeypatch, name) -> None:
    """An order of all of them takes time where they are thousands."""
    chosen, calls = training.prompts.Prompts.chosen, []
    monkeypatch.setattr(training.prompts.Prompts, "chosen", lambda *given: calls.append(given) or chosen(*given))
    counts = []
    for groups in (2, 4):
        next(iter(make(replace(small_methods(training)[name], groups=groups)).iterate(1)))
        counts.append(len(calls))
        calls.clear()
    assert 0 < counts[0] == counts[1]


def test_srpo_s_noise_levels_are_those_of_the_reference(training, models) -> None:
    """Steps 5 to 25 of 50 with shift 3, of which a step takes a tenth and stays inside (SRPO_training_hpsv2.sh)."""
    sampling, of = models["SD3"][0].get_model_object("model_sampling"), training.presets.SRPO
    shifted = [3 * t / (1 + 2 * t) for t in torch.linspace(1, 0, 51).tolist()]
    ends = [sampling.percent_to_sigma(percent) for percent in (of.start_percent, of.end_percent)]
    assert ends == pytest.approx([shifted[5], shifted[25]])
    levels = torch.tensor([of.levels(0, iteration, 1) for iteration in range(300)])
    start, end, other = levels.unbind(1)
    assert levels.min() >= 0 and levels.max() <= 1 and end.min() < 0.03 and end.max() > 0.97
    assert torch.allclose(start - end, torch.minimum(torch.tensor(0.1), torch.minimum(end, 1 - end)), atol=1e-6)
    assert torch.allclose(start - end, end - other, atol=1e-6)
    assert [of.words(step) for step in (4, 5)] == [("Natural-lighting", "Oil"), ("Detail", "Concept art")]


def _euler(run: Any, x: torch.Tensor, step: int) -> torch.Tensor:
    x0 = run.x0(x, step)
    return x + (x - x0) / run.sigmas[step] * (run.sigmas[step + 1] - run.sigmas[step])


def _stream(training: SimpleNamespace, *names: Any) -> torch.Generator:
    return training.prompts.stream(*names)


def test_ddpo_compares_over_the_whole_batch(training, make) -> None:
    """As pinterest/atg-research: less the mean of all pictures, in their standard deviations, whatever the prompt."""
    learner = make(small_methods(training)["DDPO"])._learner
    rewards = torch.tensor([0.0, 1.0, 2.0, 7.0, 8.0, 10.0], dtype=torch.float64)
    assert learner._prompts(0)[0] != learner._prompts(0)[3]
    expected = (rewards - rewards.mean()) / rewards.std(correction=0)
    torch.testing.assert_close(torch.cat(learner._advantages(0, rewards)).double(), expected, rtol=1e-3, atol=0)


def _b2_selection(rewards: torch.Tensor, prompts: torch.Tensor, rounds: list[dict[int, torch.Tensor]]) -> torch.Tensor:
    """run_select.py's loops in its own words: history of 8 rounds by prompt, best and worst of 5, thresholds ± .5.

    `rounds` are the earlier ones, each prompt → rewards; this one is added.
    """
    expected = torch.zeros(len(rewards))
    by_prompt = {int(p): rewards[prompts == p] for p in prompts.unique()}
    known = {p: torch.cat([r[p] for r in rounds[-8:] if p in r] + [own]) for p, own in by_prompt.items()}
    scores = [(r - known[int(p)].mean()) / (known[int(p)].std() + 1e-8) for r, p in zip(rewards, prompts, strict=True)]
    score = torch.stack(scores).reshape(-1, 5)
    for branch, values in enumerate(score):
        if values[values.argmax()] >= 0.5:
            expected[branch * 5 + values.argmax()] = values.max()
        if values[values.argmin()] < -0.5:
            expected[branch * 5 + values.argmin()] = values.min()
    rounds.append(by_prompt)
    return expected.clamp(-5, 5)


def test_b2_selects_as_the_reference(training) -> None:
    generator, rounds = torch.Generator().manual_seed(4), []
    earlier = torch.zeros(0, 2, dtype=torch.float64)
    for _ in range(11):
        prompts = torch.randint(3, (6,), generator=generator).repeat_interleave(5)
        rewards = torch.randn(30, generator=generator)
        ours = training.advantages.best_and_worst(rewards, prompts.double(), earlier, 5, 5.0)
        assert torch.allclose(ours, _b2_selection(rewards, prompts, rounds), atol=1e-5)
        kept = [torch.tensor([[p, float(x)] for x in own]) for r in rounds[-8:] for p, own in r.items()]
        earlier = torch.cat(kept).double()


def test_b2_compares_with_the_latest_eight_rounds(training, make) -> None:
    """Which the learner keeps itself, from iteration to iteration."""
    learner, rounds = make(small_methods(training)["B²-DiffuRL"])._learner, []
    generator = torch.Generator().manual_seed(5)
    for iteration in range(11):
        rewards = torch.randn(10, generator=generator, dtype=torch.float64)
        ours = torch.cat(learner._advantages(iteration, rewards))
        expected = _b2_selection(rewards, torch.tensor(learner._prompts(iteration)), rounds)
        assert torch.allclose(ours, expected, atol=1e-5), iteration


def test_b2_grows_backwards(training) -> None:
    """14 to 20 trained steps over 100 stages, as its run_process.sh; what comes before is common to the branches."""
    method = training.presets.B2_DIFFU_RL
    forks = [method.plan(0, stage).fork for stage in range(120)]
    assert forks == [20 - (14 + min(stage, 99) * 7 // 100) for stage in range(120)]
    assert method.plan(0, 0).trained == tuple(range(6, 19)) and method.plan(0, 0).noisy == tuple(range(20))


@pytest.mark.parametrize("stages", [7, 8, 100])
def test_the_trained_steps_come_to_their_last_number(training, stages) -> None:
    """With fewer stages than numbers they never would."""
    method = replace(training.presets.B2_DIFFU_RL, stages=stages)
    assert len(method.plan(0, stages - 1).trained) == 19  # of the last 20, the very last is not
    with pytest.raises(ValueError, match=r"^stages: 6 are too few to go from 14 .* to 20 .*; use 7 or more\.$"):
        replace(training.presets.B2_DIFFU_RL, stages=6)


def test_the_window_slides_as_mixgrpo_s(training) -> None:
    """Tencent-Hunyuan/MixGRPO's grpo_states.py ("progressive", overlap 1, back to the start), 4 of 25 steps each 25
    iterations; its windows beyond 0.6 of the steps are cut off, here the last one is whole."""
    method = replace(training.presets.FLOW_GRPO, steps=25, window=4, window_start=11, window_interval=25)
    now, in_group, starts = 0, 0, []
    for _ in range(700):
        starts.append(now)
        in_group += 1
        if in_group >= 25:
            now, in_group = now + 1, 0
        if now + 4 > 0.6 * 25:
            now = 0
    plans = [method.plan(3, iteration) for iteration in range(700)]
    assert [plan.fork for plan in plans] == starts
    assert all(plan.noisy == plan.trained == tuple(range(plan.fork, plan.fork + 4)) for plan in plans)


def test_branches_have_their_beginning_in_common(training, make) -> None:
    trainer = make(small_methods(training)["B²-DiffuRL"])
    with training.gradients.training_mode():
        plan = trainer.method.plan(0, 0)
        drawn, _ = trainer._learner._rollouts(0, plan, lambda done: None)
    first = drawn[0].steps[plan.fork]
    assert torch.equal(first.x, first.x[:1].expand_as(first.x))
    assert not torch.equal(first.x_next[0], first.x_next[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_step": 39, "last_step": 30}, "steps: gradients begin at step 39 to 30"),
        ({"gradient_steps": 12}, "steps: gradients begin at step 30 to 39 and take 12"),
        ({"from_images": True, "image_step": 35}, "steps: gradients begin"),
    ],
)
def test_reward_methods_that_cannot_be_are_refused(training, change, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}.*\\.$"):
        replace(training.presets.REFL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_percent": 0.5}, "start_percent: the trained noise levels go from 0.5 to 0.5"),
        ({"end_percent": 1.5}, "start_percent: the trained noise levels go from 0.1 to 1.5"),
        ({"wanted": ()}, "wanted: there is no word"),
        ({"unwanted": ()}, "unwanted: there is no word"),
        ({"stride": 0.0}, "stride: 0 of the noise levels is no step"),
        ({"groups": 0}, "groups: without pictures"),
    ],
)
def test_srpo_that_cannot_be_is_refused(training, change, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}.*\\.$"):
        replace(training.presets.SRPO, **change)


def test_missing_parts_are_named_before_anything_is_computed(rlg, training, make, models) -> None:
    model, vae = models["SD3"]
    texts = tasks.prompts_of(training, 2)
    settings = training.trainer.Settings()
    without = training.task.Task(model, vae, texts, tasks.Redness(), SIDE, SIDE)
    with pytest.raises(ValueError, match=r"^images: ImageReFL learns from real pictures and there are none.*\.$"):
        training.trainer.Trainer(without, training.presets.IMAGE_REFL, settings)
    with pytest.raises(ValueError, match=r"^images: there are 3 for 2 prompts; .*\.$"):
        training.task.Task(model, vae, texts, tasks.Redness(), SIDE, SIDE, torch.rand(3, 64, 64, 3))
    of = training.task.Task(model, vae, texts, rlg.module("rewards.jpeg").JpegCompressibility())
    with pytest.raises(ValueError, match=r"^reward: jpeg_compressibility has no gradient.*\.$"):
        training.trainer.Trainer(of, training.presets.REFL, settings)
