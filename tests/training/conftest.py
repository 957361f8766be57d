"""The rooms of the extension's `training/`, for the tests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

ROOMS = (
    "lora_output", "task", "team", "trainer", "weights_digest",
    "methods.advantages", "methods.direct_align", "methods.gradient_sum", "methods.losses", "methods.policy_gradient",
    "methods.presets",
    "policy.blocks", "policy.gradients", "policy.host_model", "policy.prompts", "policy.targets",
    "policy.trainable_lora",
)  # fmt: skip


@pytest.fixture(scope="session")
def training(rlg: SimpleNamespace) -> SimpleNamespace:
    """Each by its own name."""
    return SimpleNamespace(**{room.rpartition(".")[2]: rlg.module(f"training.{room}") for room in ROOMS})
