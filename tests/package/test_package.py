"""The extension as the host takes it in: its contract, its start-up, its folder."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from packed import REPO, install_packed, packed_files

SNAPSHOT = Path(__file__).parents[1] / "schema.json"


def _schemas(rlg) -> dict[str, dict]:
    """What a saved workflow depends on: ids, order, types, defaults and ranges of inputs; order of outputs."""
    kept = ("default", "min", "max", "forceInput", "control_after_generate")
    result = {}
    for node_id, node in rlg.nodes.items():
        if node_id.startswith("RLG"):
            info = node.INPUT_TYPES()
            inputs = []
            for kind in ("required", "optional"):
                for name, (io_type, options) in info.get(kind, {}).items():
                    inputs.append([name, kind, str(io_type), {k: options[k] for k in kept if k in options}])
            result[node_id] = {"inputs": inputs, "outputs": list(node.RETURN_TYPES), "category": node.CATEGORY}
    return result


def test_schemas_are_the_saved_ones(rlg) -> None:
    """Saved workflows hold widget values by position: inputs may be added at the end, never moved or renamed."""
    assert _schemas(rlg) == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_schema_ids_are_the_parameters_of_execute(rlg) -> None:
    for node_id, node in rlg.nodes.items():
        if node_id.startswith("RLG"):
            run = getattr(node, "schedule", node.execute)  # schedule nodes have their execute in common
            parameters = inspect.signature(run).parameters.values()
            named = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]
            # What has no name there goes on together, into a value that takes these names and no others.
            taken = {name for parameter in parameters if parameter.name not in named for name in _names(rlg, parameter)}
            ids = [i.id for i in node.GET_SCHEMA().inputs]
            assert [name for name in ids if name in named or name not in taken] == named, node_id


def _names(rlg, together: inspect.Parameter) -> set[str]:
    if together.name == "ksampler_inputs":
        fields = dataclasses.fields(rlg.module("rlg_sampler.ksampler_inputs").KSamplerInputs)
        return {field.name for field in fields}
    assert together.name == "settings"
    of = rlg.module("training.methods.presets")
    methods = (of.PolicyGradient, of.RewardGradient, of.DirectAlign, of.ForwardProcess)
    return {field.name for method in methods for field in dataclasses.fields(method)}


def test_every_input_and_node_is_explained(rlg) -> None:
    for node_id, node in rlg.nodes.items():
        if node_id.startswith("RLG"):
            schema = node.GET_SCHEMA()
            assert schema.description and schema.display_name, node_id
            assert all(i.tooltip for i in schema.inputs), node_id


def _modules() -> list[Path]:
    return [REPO / path for path in packed_files() if path.suffix == ".py"]


def _imports(path: Path) -> set[str]:
    """Top-level packages that a module imports by name."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots.add((node.module or "").split(".")[0])
    return roots


MAY_IMPORT = {
    "files": set(),
    # Types alone: what is drawn is a value of theirs.
    "plots": {"rewards.curve", "rewards.intervals", "rlg_sampler.schedules", "training.trainer"},
    "rewards": set(),
    "rlg_sampler": set(),
    "rlg_sampler.schedules": {"rlg_sampler.messages"},
    "rlg_sampler.stochastic": set(),
    "rlg_sampler.weights": {"rlg_sampler.messages"},
    "rlg_sampler.guidance": {"rlg_sampler.ksampler_inputs", "rlg_sampler.schedules", "rlg_sampler.weights"},
    "rlg_sampler.sweeps": {
        "rlg_sampler.messages",
        "rlg_sampler.guidance",
        "rlg_sampler.ksampler_inputs",
        "rlg_sampler.schedules",
    },  # fmt: skip
    "training": {"files", "rewards", "rlg_sampler"},
    "training.policy": {"rlg_sampler", "training.streams", "training.weights_digest"},
    "training.methods": {
        "rlg_sampler",
        "training.iteration",
        "training.policy",
        "training.streams",
        "training.task",
        "training.team",
    },
}
"""Room → what its modules may import besides each other."""


def _relative_imports(path: Path) -> set[str]:
    """The modules that a module imports relatively, by their names from the root of the pack."""
    package = [*path.relative_to(REPO).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join([*above, module]) for module in modules}
    return found


def test_imports_go_one_way() -> None:
    """nodes → training → plots, rewards, rlg_sampler, files, by relative imports alone: a folder of any name works."""
    for path in _modules():
        roots = _imports(path)
        ours = {"plots", "rewards", "rlg_sampler", "files", "training", "environment", "evaluation", "demo", "tests"}
        assert not roots & ours, path
        room = ".".join(path.relative_to(REPO).parent.parts)
        if room in MAY_IMPORT:
            assert "nodes" not in roots and "comfy_api" not in roots, path
            for module in _relative_imports(path):
                allowed = {room, *MAY_IMPORT[room]}
                assert any(module == name or module.startswith(f"{name}.") for name in allowed), (path, module)
        if room == "rewards" and path.stem != "host":
            assert not roots & {"comfy", "folder_paths"}, path


def test_runtime_needs_nothing_that_the_host_does_not_install() -> None:
    host = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes"}
    brought = {
        "PIL", "comfy_kitchen", "matplotlib", "numpy", "pydantic_core", "safetensors", "scipy", "tokenizers", "torch",
        "tqdm", "transformers",
    }  # fmt: skip
    allowed = {*host, *brought, *sys.stdlib_module_names}
    optional = {
        "figure.py": {"matplotlib"},
        "fonts.py": {"matplotlib"},
        "reward_curve.py": {"matplotlib"},
        "schedule_curve.py": {"matplotlib"},
        "lpips_distance.py": {"lpips"},
        "diversity.py": {"vendi_score"},
        "text_rendering.py": {"onnxruntime", "rapidfuzz", "rapidocr"},
    }
    forbidden = {"subprocess", "socket", "urllib", "http", "pickle"}
    for path in _modules():
        roots = _imports(path) - optional.get(path.name, set())
        assert roots <= allowed and not roots & forbidden, f"{path}: {roots - allowed or roots & forbidden}"


def test_start_up_does_not_wait_for_libraries_that_only_some_rewards_need() -> None:
    """transformers' models and the optional packages are imported where a reward is loaded, matplotlib at a drawing."""
    for path in sorted([*(REPO / "rewards").glob("*.py"), *(REPO / "plots").glob("*.py")]):
        at_import = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.If)]
        names = {alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in at_import if isinstance(node, ast.ImportFrom) and node.module}
        late = {
            "transformers",
            "tokenizers",
            "lpips",
            "vendi_score",
            "rapidocr",
            "rapidfuzz",
            "onnxruntime",
            "matplotlib",
        }
        assert not late & {name.split(".")[0] for name in names}, path


@pytest.mark.slow
def test_real_start_up_takes_the_extension_quickly(tmp_path: Path) -> None:
    """The host's own start, custom nodes included; it prints how long each took."""
    folder = "rl guidance 1.0"  # no Python identifier
    host = Path(os.environ["COMFYUI_PATH"])
    install_packed(tmp_path / "custom_nodes" / folder)
    started = subprocess.run(
        [sys.executable, str(host / "main.py"), "--cpu", "--quick-test-for-ci", "--base-directory", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    log = started.stdout + started.stderr
    assert started.returncode == 0, log
    (line,) = [row for row in log.splitlines() if row.rstrip().endswith(folder) and "seconds" in row]
    assert "IMPORT FAILED" not in line
    # A tenth of a second on a quiet machine; transformers or a plot library alone would take several seconds.
    assert float(line.split("seconds")[0].split()[-1]) <= 1.0
    assert "rlg" not in "".join(row for row in log.splitlines() if "WARNING" in row or "Traceback" in row).lower()
