"""The modules that need no host, imported by path: they are tested without one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

for _name in ("plots", "rewards", "rlg_sampler"):
    # A package of another name, so that relative imports work and the one the host loads stays apart.
    _package = ModuleType(f"hostless_{_name}")
    _package.__path__ = [str(Path(__file__).resolve().parent.parent / _name)]
    sys.modules[_package.__name__] = _package

mixing = importlib.import_module("hostless_rlg_sampler.guidance.mixing")
cell_cache = importlib.import_module("hostless_rlg_sampler.sweeps.cell_cache")
grid = importlib.import_module("hostless_rlg_sampler.sweeps.grid")
labels = importlib.import_module("hostless_rlg_sampler.sweeps.labels")
name_patterns = importlib.import_module("hostless_rlg_sampler.weights.name_patterns")
number_list = importlib.import_module("hostless_rlg_sampler.sweeps.number_list")
peft_config = importlib.import_module("hostless_rlg_sampler.weights.peft_config")
plan = importlib.import_module("hostless_rlg_sampler.sweeps.shared_evaluations")
svd = importlib.import_module("hostless_rlg_sampler.weights.svd")
schedule = importlib.import_module("hostless_rlg_sampler.schedules.schedule")

figure = importlib.import_module("hostless_plots.figure")
fonts = importlib.import_module("hostless_plots.fonts")
reward_curve = importlib.import_module("hostless_plots.reward_curve")
schedule_curve = importlib.import_module("hostless_plots.schedule_curve")

curve = importlib.import_module("hostless_rewards.curve")
intervals = importlib.import_module("hostless_rewards.intervals")
pick = importlib.import_module("hostless_rewards.pick")
pixels = importlib.import_module("hostless_rewards.pixels")
preparation = importlib.import_module("hostless_rewards.preparation")
geneval_prompt = importlib.import_module("hostless_rewards.geneval_prompt")
