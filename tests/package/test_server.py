"""A real ComfyUI server with the extension installed, used over HTTP and WebSocket as the front end does."""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from demo import run as demo
from demo import tiny_model
from demo.client import PromptError, PromptFailed, PromptInterrupted, PromptRejected
from demo.server import REPO, ServerError, comfy_server, install_extension
from demo.trained_pair import CHECKPOINT, LORAS
from demo.ui_to_api import set_widget, to_prompt
from evaluation.command_line import INTERRUPTED
from workflow_files import write_workflow_files

pytestmark = pytest.mark.slow

HOST = Path(os.environ["COMFYUI_PATH"])
SIZE, STEPS = 64, 4
LORA = LORAS["compressibility"]
OTHER_WIDTH = tiny_model.TinySD3(depth=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of our own for the demo."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("RLG_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server(cache: Path) -> Iterator[SimpleNamespace]:
    models = demo.demo_models()
    _write_unusable_files(models)
    log = cache / "server.log"

    def install(custom_nodes: Path) -> None:
        install_extension(custom_nodes)
        write_workflow_files(custom_nodes.parent)

    with comfy_server(HOST, models, log, install) as client:
        at_start = log.read_text(encoding="utf-8", errors="replace")
        yield SimpleNamespace(client=client, object_info=client.object_info(), log_at_start=at_start)


def _write_unusable_files(models: Path) -> None:
    """Beside the demo's own, in the same folders."""
    loras, checkpoints = models / "loras", models / "checkpoints"
    sdxl = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{sdxl}.lora_down.weight": torch.ones(4, 640), f"{sdxl}.lora_up.weight": torch.ones(640, 4)},
        loras / "sdxl.safetensors",
    )
    tiny_model.write_peft_adapter(loras / "other_width", OTHER_WIDTH)
    tiny_model.write_peft_adapter(loras / "no_config", tiny_model.TinySD3())
    (loras / "no_config" / "adapter_config.json").unlink()
    whole = (loras / LORA / "adapter_model.safetensors").read_bytes()
    (loras / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    whole = (checkpoints / CHECKPOINT).read_bytes()
    (checkpoints / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    tiny_model.write_checkpoint(checkpoints / "other_width.safetensors", OTHER_WIDTH, with_clip=False, with_vae=False)


def _workflow(server: SimpleNamespace, loader: dict | None = None, **sampler: Any) -> dict[str, Any]:
    """The bundled workflow with the demo's files and a small picture."""
    workflow = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    changes = {
        "RLGLoadModels": {"ckpt_name": CHECKPOINT, "lora_name": LORA} | (loader or {}),
        "RLGKSampler": {"steps": STEPS} | sampler,
        "EmptySD3LatentImage": {"width": SIZE, "height": SIZE},
    }
    return demo.changed(workflow, server.object_info, changes)


def _prompt(server: SimpleNamespace, loader: dict | None = None, **sampler: Any) -> dict[str, Any]:
    return to_prompt(_workflow(server, loader, **sampler), server.object_info)


def _node_id(prompt: dict[str, Any], kind: str) -> str:
    return next(node_id for node_id, node in prompt.items() if node["class_type"] == kind)


def test_extension_loads_without_a_complaint(server: SimpleNamespace) -> None:
    assert "IMPORT FAILED" not in server.log_at_start
    assert "Cannot import" not in server.log_at_start
    assert "Traceback" not in server.log_at_start
    assert f"custom_nodes{os.sep}comfyui-rlg" in server.log_at_start


def test_bundled_workflow_gives_another_picture_at_each_scale(server: SimpleNamespace) -> None:
    pictures = {}
    for scale in (0.0, 1.0, 2.0):
        steps = []
        workflow = _workflow(server, scale=scale)
        prompt = to_prompt(workflow, server.object_info)
        (png,) = server.client.run(prompt, workflow, lambda *step, steps=steps: steps.append(step))
        picture = Image.open(io.BytesIO(png))
        assert picture.size == (SIZE, SIZE)
        assert json.loads(picture.info["workflow"]) == workflow
        assert json.loads(picture.info["prompt"])[_node_id(prompt, "RLGKSampler")]["inputs"]["scale"] == scale
        pictures[scale] = picture.tobytes()
        # Newer hosts leave out some steps in between when they come fast.
        assert steps == sorted(steps) and steps[-1] == (STEPS, STEPS) and len(steps) >= 2
    assert len(set(pictures.values())) == 3


@pytest.mark.parametrize("path", sorted(demo.WORKFLOW.parent.glob("*.json")), ids=lambda path: path.stem)
def test_every_bundled_workflow_runs(server: SimpleNamespace, path: Path) -> None:
    """As it is, but for the files, the size and the steps."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    changes = {
        "RLGLoadModels": {"ckpt_name": CHECKPOINT, "lora_name": LORA},
        "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
        "RLGLoadLora": {"lora_name": LORA},
        "RLGLoadReward": {"name": "pickscore"},
        **dict.fromkeys(("EmptySD3LatentImage", "EmptyLatentImage"), {"width": SIZE, "height": SIZE}),
        **dict.fromkeys(("KSampler", "RLGKSampler", "RLGSweep", "RLGBranch"), {"steps": STEPS}),
        "RLGTrainLora": {"width": SIZE, "height": SIZE, "iterations": 1},
        "RLGFlowGRPO": {"steps": 3, "cfg": 1, "groups": 1, "group_size": 2, "window": 0},
        "RLGReFL": {"steps": 4, "first_step": 2, "last_step": 3, "image_step": 1, "groups": 1},
    }
    for node in workflow["nodes"]:
        for name, value in changes.get(node["type"], {}).items():
            set_widget(node, server.object_info[node["type"]], name, value)
    progress = []
    pngs = server.client.run(to_prompt(workflow, server.object_info), workflow, lambda *step: progress.append(step))
    pictures = [Image.open(io.BytesIO(png)) for png in pngs]
    saved = [picture for picture in pictures if "workflow" in picture.info]  # previews have none
    assert len(saved) == sum(node["type"] == "SaveImage" for node in workflow["nodes"])
    assert all(json.loads(picture.info["workflow"]) == workflow for picture in saved)
    assert all(low != high for picture in saved for low, high in [picture.convert("L").getextrema()])
    assert progress[-1][0] == progress[-1][1]


def test_saved_pictures_say_what_their_schedule_is(server: SimpleNamespace) -> None:
    """Also where the schedule's node did not run again, and in a prompt that comes without a workflow."""
    found = []
    for seed in (1, 2):
        prompt = _prompt(server, seed=seed)
        inputs = {"start_scale": 0.0, "end_scale": 2.0, "curve": "power", "power": 3.0}
        prompt["ramp"] = {"class_type": "RLGRamp", "inputs": inputs}
        prompt["unusable"] = {"class_type": "RLGScale", "inputs": {"scale": ["ramp", 0]}}  # not reached by any output
        prompt[_node_id(prompt, "RLGKSampler")]["inputs"]["schedule"] = ["ramp", 0]
        (*_, png) = server.client.run(prompt)
        found.append(json.loads(Image.open(io.BytesIO(png)).info["rlg_schedules"]))
    assert found == [{"ramp RLGRamp": "0:0, 1:2 (power 3)"}] * 2


def test_same_prompt_gives_the_same_picture(server: SimpleNamespace) -> None:
    pictures = []
    for scale in (1.6, 0.0, 1.6):
        prompt = _prompt(server, scale=scale)
        # Another file name, so that the server does not answer from its cache.
        prompt[_node_id(prompt, "SaveImage")]["inputs"]["filename_prefix"] = f"again{len(pictures)}"
        (png,) = server.client.run(prompt)
        pictures.append(Image.open(io.BytesIO(png)).tobytes())
    assert pictures[0] == pictures[2] != pictures[1]


def test_cancel_midway_then_the_next_prompt_runs(server: SimpleNamespace) -> None:
    seen = [0]

    def cancel_after_3(step: int, total: int) -> None:
        if step >= 3 and max(seen) < 3:
            server.client.interrupt()
        seen.append(step)

    with pytest.raises(PromptInterrupted):
        server.client.run(_prompt(server, steps=400, seed=3), on_progress=cancel_after_3)
    assert 3 <= max(seen) < 400
    assert len(server.client.run(_prompt(server, seed=3))) == 1


def _same_models(server: SimpleNamespace) -> dict[str, Any]:
    prompt = _prompt(server)
    prompt[_node_id(prompt, "RLGKSampler")]["inputs"]["tuned"] = [_node_id(prompt, "RLGLoadModels"), 0]
    return prompt


def test_equal_models_give_the_picture_of_the_base(server: SimpleNamespace) -> None:
    prompts = _prompt(server, scale=0.0), _same_models(server), _prompt(server, {"lora_strength": 0.0})
    pictures = [server.client.run(prompt) for prompt in prompts]
    assert len({Image.open(io.BytesIO(png)).tobytes() for (png,) in pictures}) == 1


def _tuned_of_another_size(server: SimpleNamespace) -> dict[str, Any]:
    prompt = _prompt(server)
    prompt["other"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "other_width.safetensors"}}
    prompt[_node_id(prompt, "RLGKSampler")]["inputs"]["tuned"] = ["other", 0]
    return prompt


def _nan_scale(server: SimpleNamespace) -> dict[str, Any]:
    prompt = copy.deepcopy(_prompt(server))
    prompt[_node_id(prompt, "RLGKSampler")]["inputs"]["scale"] = math.nan
    return prompt


FAILING = {
    "LoRA for another architecture": (lambda s: _prompt(s, {"lora_name": "sdxl.safetensors"}), ["sdxl", "SD3"]),
    "LoRA of another width": (lambda s: _prompt(s, {"lora_name": "other_width"}), ["other_width", "128", "192"]),
    "adapter without its config": (
        lambda s: _prompt(s, {"lora_name": os.path.join("no_config", "adapter_model.safetensors")}),
        ["adapter_config.json"],
    ),
    "truncated LoRA": (lambda s: _prompt(s, {"lora_name": "truncated.safetensors"}), ["truncated.safetensors"]),
    "tuned model of another size": (_tuned_of_another_size, ["tuned", "base"]),
    "NaN scale": (_nan_scale, ["scale", "nan"]),
}


@pytest.mark.parametrize(("build", "words"), FAILING.values(), ids=FAILING.keys())
def test_bad_input_is_one_clear_sentence_and_the_server_goes_on(server: SimpleNamespace, build, words) -> None:
    with pytest.raises(PromptFailed) as caught:
        server.client.run(build(server))
    message = str(caught.value)
    assert message.startswith("RLG")
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert word.lower() in message.lower()
    assert len(server.client.run(_prompt(server, seed=len(message)))) == 1


def test_truncated_checkpoint_is_an_error_and_the_server_goes_on(server: SimpleNamespace) -> None:
    """The host's own loader reads checkpoints; the words are its own."""
    with pytest.raises(PromptError):
        server.client.run(_prompt(server, {"ckpt_name": "truncated.safetensors"}))
    assert len(server.client.run(_prompt(server, seed=11))) == 1


def test_value_out_of_range_is_refused_before_it_runs(server: SimpleNamespace) -> None:
    with pytest.raises(PromptRejected, match=r"RLGKSampler.*11.*max.*scale"):
        server.client.run(_prompt(server, scale=11.0))


def test_missing_file_is_one_line(server: SimpleNamespace) -> None:
    """Refused by newer hosts, found out by the loader in older ones, which do not look into V3 combos."""
    with pytest.raises(PromptError, match=r"^RLGLoadModels.*missing\.safetensors") as caught:
        server.client.run(_prompt(server, {"lora_name": "missing.safetensors"}))
    assert "\n" not in str(caught.value)


def test_host_that_does_not_start_is_one_line_that_names_the_log(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("raise SystemExit('no torch here')")
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerError, match="exit code 1.*no torch here") as caught,
        comfy_server(tmp_path, tmp_path, log),
    ):
        pass
    assert str(log) in str(caught.value) and "\n" not in str(caught.value)


def test_folder_that_is_no_host_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"no main\.py"),
        comfy_server(tmp_path / "nothing", tmp_path, tmp_path / "server.log"),
    ):
        pass


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_in_the_demo_leaves_no_process_behind(server: SimpleNamespace, cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.run", "--host", str(HOST), "--output", str(tmp_path / "out")]
    output = tmp_path / "stdout"
    # Shells start what runs in the background, these tests maybe, with Ctrl-C ignored.
    heeds_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL) if os.name == "posix" else None
    with output.open("w") as stdout:
        process = subprocess.Popen(
            [*command, "--prompts", "500"], cwd=REPO, stdout=stdout, stderr=subprocess.STDOUT, preexec_fn=heeds_ctrl_c
        )
    demo_process = psutil.Process(process.pid)
    try:
        while "prompt " not in output.read_text():
            assert process.poll() is None, output.read_text()
            time.sleep(0.2)
        children = demo_process.children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == INTERRUPTED  # a busy machine takes its time
    finally:
        process.kill()
    assert children
    assert not any(child.is_running() for child in children)
    assert not (tmp_path / "out").exists()
