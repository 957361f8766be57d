"""The modules that need no host, imported by path: they are tested without one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _load(name: str) -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "rlg_sampler" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"pure_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


mixing = _load("mixing")
peft_config = _load("peft_config")
