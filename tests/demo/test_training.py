"""The demo's training: files against diffusers and PEFT, and runs that go on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from demo.scenes import prompts
from demo.tasks import TASKS
from demo.tiny_encoders import CLIP_WIDTH, LATENT_CHANNELS
from demo.train import base, loop, lora, vae
from demo.train.__main__ import LORAS
from demo.train.asked import COUNT, to_train_on
from demo.train.export import host_state_dict
from demo.train.text import Text
from demo.trained_pair import checkpoint


@pytest.fixture(autouse=True)
def _gradients(_inference_mode: None) -> Iterator[None]:
    """Training is not done in the mode that the host runs nodes in."""
    with torch.inference_mode(False):
        yield


def test_files_read_back_by_diffusers_are_the_trained_weights() -> None:
    torch.manual_seed(0)
    model = base.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    weights = model.state_dict()
    back = convert_sd3_transformer_checkpoint_to_diffusers(host_state_dict(weights))
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor), name


def test_a_weight_without_a_name_in_checkpoints_is_an_error() -> None:
    with pytest.raises(KeyError, match="something_new"):
        host_state_dict(base.build().state_dict() | {"something_new.weight": torch.zeros(1)})


def _toy(folder: Path, steps: int, stop_after: int | None = None, seed: int = 5) -> tuple[torch.Tensor, list]:
    """A tiny training; `stop_after` ends it as Ctrl-C does."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        if index == stop_after:
            raise KeyboardInterrupt
        loss = (model(torch.randn(8, 3, generator=generator)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach())}

    history = loop.train(folder / "toy.ckpt", steps, seed, {"model": model, "optimizer": optimizer}, step)
    return model.weight.detach().clone(), history


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole, history = _toy(tmp_path / "whole", steps=12)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path / "stopped", steps=12, stop_after=7)
    resumed, resumed_history = _toy(tmp_path / "stopped", steps=12)
    assert torch.equal(whole, resumed)
    assert history == resumed_history and len(history) == 12
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["toy.ckpt"]


def test_a_checkpoint_of_another_seed_is_not_continued(tmp_path: Path) -> None:
    _toy(tmp_path, steps=2)
    with pytest.raises(ValueError, match="seed 5, not 6"):
        _toy(tmp_path, steps=2, seed=6)


def test_a_stage_of_which_the_file_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mmdit.safetensors").write_bytes(b"half of a file")
    with pytest.raises(ValueError, match="mmdit.safetensors cannot be read .*; train that stage again, or delete"):
        checkpoint(tmp_path)


def test_the_stages_are_recipes_that_the_trainer_takes(rlg: SimpleNamespace) -> None:
    assert list(LORAS) == list(TASKS)
    for recipe in LORAS.values():
        replace(rlg.module("training.methods.presets").DIFFUSION_NFT, **recipe.settings)


@pytest.mark.parametrize("name", TASKS)
def test_a_lora_is_trained_on_different_prompts_that_are_not_held_out(name: str) -> None:
    """Of scenes, two fifths are lone things that may stand anywhere: what the tuned model draws twice most often."""
    found = to_train_on(name, seed=3)
    assert len({asked.text for asked in found}) == len(found) == COUNT
    assert not any(asked.held_out for asked in found)
    if name == "composition":
        anywhere = [scene for scene in found if len(scene.things) == 1 and scene.place is None]
        assert len(anywhere) == pytest.approx(2 / 5 * COUNT, abs=1)


def test_the_phases_have_as_many_wrong_captions_as_they_say() -> None:
    """The pictures are told apart by their values, the captions by theirs: those of caption n are n."""
    count = base.SCENES + base.SIGNS
    numbers = torch.arange(count + 1, dtype=torch.float32)
    latents = numbers[:count, None, None, None, None].expand(count, base.PICTURES_EACH, 1, 1, 1)
    data = base.Data(latents, Text(numbers[:, None, None], numbers[:, None]))
    for phase in base.PHASES:
        found = [base._batch(data, phase, torch.Generator().manual_seed(seed)) for seed in range(200)]
        own, said = torch.cat([x0.flatten() for x0, _ in found]), torch.cat([t.pooled.flatten() for _, t in found])
        is_sign, empty = own >= base.SCENES, said == count
        wrong = (own != said)[~empty], is_sign[~empty]
        assert is_sign.float().mean() == pytest.approx(phase.signs, abs=0.03)
        assert empty.float().mean() == pytest.approx(base.DROPPED_CAPTIONS, abs=0.02)
        assert ((said >= base.SCENES) == is_sign)[~empty].all()
        for signs, share in ((False, phase.wrong_scenes), (True, phase.wrong_signs)):
            if (chosen := wrong[0][wrong[1] == signs]).numel():
                assert chosen.float().mean() == pytest.approx(share, abs=0.03)


def test_every_step_belongs_to_a_phase() -> None:
    starts = [0, *itertools.accumulate(phase.steps for phase in base.PHASES)]
    for phase, first, end in zip(base.PHASES, starts, starts[1:], strict=False):
        assert base.phase_at(first) == (phase, 0) and base.phase_at(end - 1) == (phase, phase.steps - 1)
        assert 0 <= phase.rate(phase.steps - 1) < 1e-4 < phase.rate(phase.steps // 2)


def test_the_base_is_the_mean_of_the_averages_before_and_after_the_last_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the training was stopped between the two."""
    monkeypatch.setattr(base, "SCENES", 2)
    monkeypatch.setattr(base, "SIGNS", 1)
    monkeypatch.setattr(base, "BATCH", 2)
    monkeypatch.setattr(base, "compiled", lambda model: model)
    text = Text(torch.zeros(4, 77, CLIP_WIDTH, dtype=torch.bfloat16), torch.zeros(4, CLIP_WIDTH, dtype=torch.bfloat16))
    side = base.LATENT_SIDE
    data = base.Data(torch.ones(3, base.PICTURES_EACH, LATENT_CHANNELS, side, side, dtype=torch.bfloat16), text)
    phases = [base.Phase(steps, lambda index: 0.1) for steps in (1, 1, 2)]

    def trained(count: int) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(base, "PHASES", phases[:count])
        base.train_base(tmp_path, 0, data)
        return torch.load(tmp_path / "base.ckpt", weights_only=True)["state"]

    first, before = trained(1)["average"], trained(2)["average"]
    after = trained(3)["average"]
    (tmp_path / "base.ckpt").rename(tmp_path / "whole.ckpt")
    made = base.train_base(tmp_path, 0, data).state_dict()
    assert any(not torch.equal(first[name], before[name]) for name in made)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, (before[name] + after[name]) / 2, msg=name)


def test_the_decoder_learns_signs_and_the_encoder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the base model would have to be trained anew."""
    monkeypatch.setattr(vae, "DECODER_STEPS", 2)
    monkeypatch.setattr(vae, "SCENES", 4)
    model = vae.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vae.train_decoder(model, tmp_path, seed=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("encoder"), name


def test_a_lora_is_made_by_the_packs_trainer_and_goes_on(rlg: SimpleNamespace, tmp_path: Path) -> None:
    """On the demo's own base, in the files that the demo has: an adapter that PEFT reads, and the course of the run."""
    settings = {"groups": 1, "group_size": 2, "steps": 2}
    recipe, asked = lora.Recipe(2, settings=settings, rank=4), prompts(0, 1, held_out=False)
    loaded = lora.load(checkpoint())
    for iterations in (1, 2):
        trainer = lora.trainer(rlg.module, loaded, recipe, "compressibility", asked, 0, tmp_path / "state")
        assert len(trainer.history) == iterations - 1
        lora.train(trainer, iterations)
        lora.write([trainer], tmp_path / "adapter")
    adapter = PeftModel.from_pretrained(base.build(), str(tmp_path / "adapter"))
    read = {name: parameter for name, parameter in adapter.named_parameters() if "lora_" in name}
    assert len(read) == len(trainer.policy.parameters)
    assert any(parameter.abs().max() > 0 for name, parameter in read.items() if "lora_B" in name)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["iterations"] == "2"
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118 (no mapping)
    header, *rows = (tmp_path / "adapter" / "curve.csv").read_text().splitlines()
    assert header == "seed,iteration,reward,spread,kl,clipped"
    assert [row.split(",")[:2] for row in rows] == [["0", "1"], ["0", "2"]]
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "curve.csv",
    ]  # fmt: skip


def test_several_trainings_are_written_as_their_mean(rlg: SimpleNamespace, tmp_path: Path) -> None:
    """Within what rank and fp16 leave of it."""
    settings, asked = {"groups": 1, "group_size": 2, "steps": 2}, prompts(0, 1, held_out=False)
    recipe, loaded = lora.Recipe(1, settings=settings, rank=4), lora.load(checkpoint())
    runs = [
        lora.trainer(rlg.module, loaded, recipe, "compressibility", asked, seed, tmp_path / str(seed))
        for seed in (2, 3)
    ]
    for run in runs:
        lora.train(run, 1)
    lora.write(runs, tmp_path / "both")
    for number, run in enumerate(runs):
        lora.write([run], tmp_path / f"alone {number}")
    both, *alone = (load_file(tmp_path / of / "adapter_model.safetensors") for of in ("both", "alone 0", "alone 1"))
    assert both.keys() == alone[0].keys()
    for down in (name for name in both if ".lora_A." in name):
        up = down.replace(".lora_A.", ".lora_B.")
        added, *parts = (weights[up].double() @ weights[down].double() for weights in (both, *alone))
        mean = sum(parts) / 2
        # Of a matrix of rank 8 the best of rank 4 leaves these singular values.
        best = torch.linalg.svdvals(mean)[4:].square().sum().sqrt()
        assert (added - mean).norm() <= best + 2e-3 * mean.norm()
    rows = (tmp_path / "both" / "curve.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [["2", "1"], ["3", "1"]]
    with safe_open(tmp_path / "both" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["seed"] == "2, 3"
