"""A server that gets prompt after prompt, some of them unusable or cancelled, goes on as if each were the first.

`--times 5` queues 100 prompts; memory is looked at from there on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from demo import run as demo
from demo.client import ComfyClient, PromptError, PromptFailed, PromptInterrupted, PromptRejected
from demo.server import comfy_server
from demo.trained_pair import CHECKPOINT, LORAS
from demo.ui_to_api import to_prompt

pytestmark = pytest.mark.slow

PROMPTS = 20
SIZE, STEPS = 64, 4
SCALES = (0.0, 1.0, 1.6)
BAD: list[Any] = [
    None,
    "",
    "x" * 1000,
    float("nan"),
    -1e308,
    10**20,
    [],
    ["nowhere", 0],
    ["3", 99],
    {"a": 1},
    "../../x",
    "a\0b",
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyClient]:
    folder = tmp_path_factory.mktemp("long-run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLG_CACHE", str(folder))
        with comfy_server(Path(os.environ["COMFYUI_PATH"]), demo.demo_models(), folder / "server.log") as client:
            yield client


def _prompt(client: ComfyClient, prefix: str, **sampler: Any) -> dict[str, Any]:
    """The bundled workflow, small; `prefix` names its picture, so that the server does not answer from its cache."""
    info = client.object_info()
    changes = {
        "RLGLoadModels": {"ckpt_name": CHECKPOINT, "lora_name": LORAS["compressibility"]},
        "RLGKSampler": {"steps": STEPS, "seed": 1} | sampler,
        "EmptySD3LatentImage": {"width": SIZE, "height": SIZE},
        "SaveImage": {"filename_prefix": prefix},
    }
    workflow = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    return to_prompt(demo.changed(workflow, info, changes), info)


def _server_memory(client: ComfyClient) -> int:
    port = int(client.address.rpartition(":")[2])
    (process,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp"))
    )
    return process.memory_info().rss


def test_many_prompts_with_cancels(client: ComfyClient, times: int) -> None:
    """No error but ours, the same pictures as alone, and from 100 prompts on no more memory in their second half."""
    dice = random.Random("long run")
    alone = {scale: _pixels(client, _prompt(client, f"alone{scale}", scale=scale)) for scale in SCALES}
    memory, cancelled = [], 0
    for number in range(PROMPTS * times):
        scale = dice.choice(SCALES)
        if dice.random() < 0.3:
            timer = threading.Timer(dice.uniform(0, 0.5), client.interrupt)
            timer.start()
            with contextlib.suppress(PromptInterrupted):
                client.run(_prompt(client, f"cancelled{number}", scale=scale, steps=100))
                cancelled -= 1
            cancelled += 1
            timer.join()
        else:
            assert _pixels(client, _prompt(client, f"run{number}", scale=scale)) == alone[scale], number
        memory.append(_server_memory(client))
    assert cancelled > 0
    if times >= 5:
        half = len(memory) // 2
        assert max(memory[half:]) < 1.02 * max(memory[:half]), [round(m / 2**20) for m in memory]


def test_prompts_past_the_checks_of_the_front_end(client: ComfyClient, times: int) -> None:
    """Whatever is in an input, the server answers in one line, and lives."""
    dice = random.Random("hostile prompts")
    for number in range(PROMPTS * times):
        prompt = _prompt(client, f"hostile{number}")
        node = dice.choice([n for n in prompt.values() if n["class_type"].startswith("RLG")])
        name = dice.choice(list(node["inputs"]))
        node["inputs"][name] = dice.choice(BAD)
        try:
            client.run(prompt)
        except (PromptRejected, PromptFailed) as error:
            assert "\n" not in str(error) and len(str(error)) < 3000, (name, str(error))
        except PromptError as error:
            pytest.fail(f"{name}: {error}")
    assert client.run(_prompt(client, "after"))


def _pixels(client: ComfyClient, prompt: dict[str, Any]) -> bytes:
    (png,) = client.run(prompt)
    return Image.open(io.BytesIO(png)).tobytes()
