"""The modules that need no host, imported by path: they are tested without one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

# A package of another name, so that relative imports work and the one the host loads stays apart.
_package = ModuleType("pure_rlg_sampler")
_package.__path__ = [str(Path(__file__).resolve().parent.parent / "rlg_sampler")]
sys.modules[_package.__name__] = _package

mixing = importlib.import_module("pure_rlg_sampler.mixing")
grid = importlib.import_module("pure_rlg_sampler.grid")
peft_config = importlib.import_module("pure_rlg_sampler.peft_config")
plan = importlib.import_module("pure_rlg_sampler.plan")
schedule = importlib.import_module("pure_rlg_sampler.schedule")
