"""Several workers take the same steps as one: whatever spans groups of pictures is computed over all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_tasks as tasks
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def loaded(models_dir: Path) -> tuple[Any, Any]:
    return tasks.load(tasks.tiny_checkpoint(models_dir, "teams"))


def _methods(of: SimpleNamespace) -> dict[str, Any]:
    """Each way to compare pictures and each gradient, small."""
    small = {"steps": 4, "groups": 4, "cfg": 1.0}
    return {
        "Flow-GRPO": replace(of.FLOW_GRPO, **small, group_size=2),
        "DDPO": replace(of.DDPO, **small, group_size=2, trained_steps=2, image_weight=0.1),
        "B²-DiffuRL": replace(of.B2_DIFFU_RL, **small | {"groups": 5}, group_size=3, tail=(2, 3), stages=2),
        "DiffusionNFT": replace(of.DIFFUSION_NFT, **small, group_size=2, trained_steps=2),
        "ImageReFL": replace(of.IMAGE_REFL, **small, first_step=2, last_step=3, image_step=1, reward_weight=1.0),
    }


@pytest.fixture
def run(training: SimpleNamespace, loaded: tuple[Any, Any]) -> Callable[..., list[Any]]:
    """Trainers of a team after some iterations; its workers are threads that compute in turn."""

    def team(method: Any, size: int, until: int = 2, checkpoint: Path | None = None) -> list[Any]:
        trainers: list[Any] = [None] * size
        own: list[Any] = [None] * size
        one_at_a_time = threading.Lock()
        everyone = threading.Barrier(size, timeout=300)

        class Worker(training.team.Team):
            def _shared(self, value: Any) -> list[Any]:
                own[self.place] = value
                one_at_a_time.release()
                everyone.wait()
                shared = list(own)
                everyone.wait()
                one_at_a_time.acquire()
                return shared

            def total(self, value: torch.Tensor) -> torch.Tensor:
                return torch.stack(self._shared(value)).sum(0)

            def from_first(self, make: Callable[[], Any]) -> Any:
                return self._shared(make() if self.place == 0 else None)[0]

        def work(place: int) -> None:
            with one_at_a_time:
                images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
                of = training.task.Task(
                    *loaded, tasks.prompts_of(training, 3), tasks.Redness(), tasks.SIDE, tasks.SIDE, images
                )
                settings = training.trainer.Settings(rank=4, learning_rate=1e-2, checkpointing=False)
                trainer = training.trainer.Trainer(of, method, settings, checkpoint, Worker(place, size))
                for _ in trainer.iterate(until):
                    pass
                trainers[place] = trainer

        with training.gradients.training_mode():  # a flag of the host's that threads would leave in another order
            threads = [threading.Thread(target=work, args=(place,)) for place in range(size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(trainers), "a worker failed"
        return trainers

    return team


def _state(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer._tensors().items()}


@pytest.mark.parametrize("name", ["Flow-GRPO", "DDPO", "B²-DiffuRL", "DiffusionNFT", "ImageReFL"])
def test_a_team_ends_with_the_lora_of_one_worker(training, run, times, name) -> None:
    """To the last bit, and each of its workers: sums are rounded once. The history says the same to 1e-9."""
    method = _methods(training.presets)[name]
    (alone,) = run(method, 1)
    expected = _state(alone)
    assert any(expected[f"policy.{n}"].any() for n in alone.policy.parameters if n.endswith(".up"))
    for size in (2, 4) if times > 1 else (2,):
        for worker in run(method, size):
            found = _state(worker)
            assert [n for n in expected if not torch.equal(found[n], expected[n])] == []
            for ours, theirs in zip(worker.history, alone.history, strict=True):
                values = {n: pytest.approx(v, rel=1e-9, abs=1e-12) for n, v in vars(theirs).items() if n != "seconds"}
                assert {n: v for n, v in vars(ours).items() if n != "seconds"} == values


def test_a_team_goes_on_from_what_its_first_worker_kept(training, run, tmp_path) -> None:
    method = _methods(training.presets)["B²-DiffuRL"]
    (alone,) = run(method, 1)
    run(method, 2, until=1, checkpoint=tmp_path / "state")
    for worker in run(method, 2, until=2, checkpoint=tmp_path / "state"):
        assert [n for n, tensor in _state(alone).items() if not torch.equal(tensor, _state(worker)[n])] == []


def test_a_team_larger_than_its_groups_is_refused(training, loaded) -> None:
    of = training.task.Task(*loaded, tasks.prompts_of(training, 3), tasks.Redness(), tasks.SIDE, tasks.SIDE)
    with pytest.raises(ValueError, match=r"^groups: 4 cannot be shared among 5 workers; raise it, or take fewer.*\.$"):
        training.trainer.Trainer(
            of, training.presets.FLOW_GRPO, training.trainer.Settings(), team=training.team.Team(0, 5)
        )


@given(seed=st.integers(0, 2**32), parts=st.integers(2, 9))
def test_the_sum_of_gradients_does_not_depend_on_their_order(training, seed: int, parts: int) -> None:
    """What float32 sums of numbers of unlike sizes would do; a parameter that nothing reaches keeps none."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(seed)
        sizes = 10.0 ** torch.randint(-4, 4, (parts, 1), generator=generator)
        given_ = torch.randn(parts, 50, generator=generator) * sizes
        sums = []
        for order in (range(parts), torch.randperm(parts, generator=generator).tolist()):
            reached, other = torch.nn.Parameter(torch.zeros(5, 10)), torch.nn.Parameter(torch.zeros(3))
            gradients = training.gradient_sum.GradientSum([reached, other])
            for part in order:
                reached.grad = given_[part].view(5, 10)
                gradients.take()
                assert reached.grad is None
            gradients.give(training.team.ALONE)
            assert other.grad is None
            sums.append(reached.grad)
        torch.testing.assert_close(sums[0].double(), given_.double().sum(0).view(5, 10), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(*sums, rtol=2e-7, atol=0)
