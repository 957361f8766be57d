"""A real ComfyUI for the tests: its tree, its custom-node loader, its models on the CPU. Nothing of it is mocked."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# The models are tiny: a second thread costs more in waiting than it computes. So in the servers that tests start, too;
# torch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

REPO = Path(__file__).resolve().parent.parent
PACK = "comfyui-rlg"  # a folder name with a hyphen, as users have it

_host = os.environ.get("COMFYUI_PATH")
if not _host:
    raise pytest.UsageError("COMFYUI_PATH is not set; run the tests with `python dev.py test`.")
sys.path[:] = [_host, *(p for p in sys.path if Path(p or ".").resolve() != REPO), str(REPO)]
sys.argv = [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]

import comfy.options

comfy.options.enable_args_parsing()

import hypothesis

# The first example of a test may import half of a library.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")

import comfy.cli_args  # parses sys.argv once, here
import comfy.utils
import comfyui_version
import folder_paths
import torch

# The host's, as in its own start: its nodes.py later puts a folder in front of the path that has another `utils`.
import utils.json_util  # noqa: F401

# The host's too: pytest later puts the repository in front, where its name is no Python identifier (comfyui-rlg).
import nodes as host_nodes  # isort: skip

from pairs import load_checkpoint, write_lora, write_model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--freeze", action="store_true", help="write tests/frozen anew for the version in pyproject.toml")
    parser.addoption("--pictures", action="store_true", help="write the pictures of tests/browser in docs/images anew")
    parser.addoption(
        "--times",
        type=int,
        default=1,
        metavar="N",
        help="N times as many faults, bad inputs, queued prompts and kills as usual",
    )


@pytest.hookimpl(trylast=True)  # once `-k` and `-m` have chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the tests ran on, in the file of `--junitxml`: with one test, as workers send nothing for the whole run."""
    versions = {
        "ComfyUI": comfyui_version.__version__,
        "system": platform.system(),
        "Python": platform.python_version(),
        "PyTorch": str(torch.__version__),
    }
    for item in items[:1]:
        item.user_properties.extend(versions.items())


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> int:
    """How many times as much tests of chance should try."""
    return request.config.getoption("--times")


@pytest.fixture
def every_step_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer hosts leave out progress that comes fast; a test of which steps are reported wants it all."""
    for name in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(comfy.utils, name, 0, raising=False)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `models` folder of our own, known to the host."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("checkpoints", "loras"):
        (root / kind).mkdir()
        folder_paths.add_model_folder_path(kind, str(root / kind), is_default=True)
    folder_paths.set_temp_directory(str(root.parent / "temp"))  # previews: the host's own folders are only read
    return root


@pytest.fixture(scope="session")
def rlg(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The extension, taken in by the host's own loader from a folder with a hyphen in its name."""
    extras = Path(_host) / "comfy_extras"
    for name in (
        "custom_sampler",
        "slg",
        "pag",
        "sag",
        "easycache",
        "sd3",
        "model_advanced",
        "torch_compile",
        "primitive",
        "preview_any",
        "images",
    ):
        asyncio.run(host_nodes.load_custom_node(str(extras / f"nodes_{name}.py"), module_parent="comfy_extras"))
    custom_nodes = tmp_path_factory.mktemp("custom_nodes")
    (custom_nodes / PACK).symlink_to(REPO, target_is_directory=True)
    path = str(custom_nodes / PACK)
    assert asyncio.run(host_nodes.load_custom_node(path)), "the host did not take the extension"
    package = path.replace(".", "_x_")

    def module(name: str) -> object:
        return importlib.import_module(f"{package}.{name}")

    # The host collects garbage whenever it loads a model, and would look through all of torch and diffusers each time:
    # half of what tests of small models take.
    gc.collect()
    gc.freeze()
    return SimpleNamespace(nodes=host_nodes.NODE_CLASS_MAPPINGS, module=module)


@pytest.fixture(scope="module")
def object_info(rlg: SimpleNamespace) -> dict[str, Any]:
    """What /object_info answers, for the nodes that the tests' host has loaded: stock ones and ours."""
    return {name: _info(node) for name, node in rlg.nodes.items()}


def _info(node: type) -> dict[str, Any]:
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {
        "input": inputs,
        "input_order": {group: list(names) for group, names in inputs.items()},
        "output": node.RETURN_TYPES,
        "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
    }


@pytest.fixture(autouse=True)
def _inference_mode() -> Iterator[None]:
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def run_node(rlg: SimpleNamespace) -> Callable[..., tuple]:
    """Call a node's function by id, ours or the host's, and return its outputs."""

    def run(node_id: str, **inputs: object) -> tuple:
        node = rlg.nodes[node_id]
        if hasattr(node, "GET_SCHEMA"):
            output = node.execute(**inputs)
            return output.result if output.expand is None else expanded(output.expand, output.result)
        return getattr(node(), node.FUNCTION)(**inputs)

    def expanded(graph: dict[str, dict], links: tuple) -> tuple:
        """What a node gives that stands for others, in their order."""
        outputs: dict[str, tuple] = {}

        def value(of: object) -> object:
            return outputs[of[0]][of[1]] if isinstance(of, list) else of

        for name, node in graph.items():
            outputs[name] = run(node["class_type"], **{key: value(of) for key, of in node["inputs"].items()})
        return tuple(map(value, links))

    return run


@pytest.fixture(scope="module")
def checkpoint(models_dir: Path, request: pytest.FixtureRequest) -> Path:
    """A small model with a LoRA, both called like the test module."""
    write_lora(models_dir, _name_of(request))
    return write_model(models_dir, _name_of(request))


@pytest.fixture(scope="module")
def base(checkpoint: Path) -> Any:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def other(checkpoint: Path) -> Any:
    """The same checkpoint as a second set of weights."""
    return load_checkpoint(checkpoint)


@pytest.fixture
def tune(checkpoint: Path, run_node: Callable[..., tuple]) -> Callable[[Any], Any]:
    """The LoRA of `checkpoint` on a MODEL."""
    return lambda model: run_node("RLGLoadLora", model=model, lora_name=checkpoint.stem, strength=1.0)[0]


def _name_of(request: pytest.FixtureRequest) -> str:
    return request.module.__name__.removeprefix("test_")


@pytest.fixture
def reward_models(rlg: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folder for the weights of rewards, empty."""
    path = tmp_path / "reward_models"
    path.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "reward_models", ([str(path)], set()))
    return path
