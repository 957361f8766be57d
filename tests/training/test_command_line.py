"""`python -m training` makes the node's LoRA, whatever is killed meanwhile, and says in one sentence why it cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import nodes as host_nodes
import psutil
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import training.program.run
from demo.tiny_model import TinySD3, write_checkpoint
from evaluation.errors import EvaluationError
from training.__main__ import parse
from training.program.plan import load_plan, widgets
from training.program.run import TrainingRun
from training.team import Team

REPO = Path(__file__).resolve().parents[2]
HOST = os.environ["COMFYUI_PATH"]
PROGRAM = [sys.executable, str(Path(__file__).with_name("impatient_training.py"))]
METHOD = {"steps": 3, "cfg": 1.0, "groups": 4, "group_size": 2}
FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
ITERATIONS = 8

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command_line_models")
    write_checkpoint(folder / "checkpoints" / "command_line.safetensors", TinySD3(), dtype=_float32())
    folder_paths.add_model_folder_path("checkpoints", str(folder / "checkpoints"))
    return folder


def _float32() -> Any:
    import torch

    return torch.float32


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A plan with small settings, some of them changed; None takes one out."""

    def plan(**changes: Any) -> Path:
        settings = {
            "name": "red", "checkpoint": "command_line.safetensors", "prompts": {"file": "prompts.txt"},
            "rewards": ["jpeg_compressibility"], "method": {"flow_grpo": METHOD}, "iterations": 2,
            "learning_rate": 0.01, "rank": 4, "seed": 5, "width": 64, "height": 64, "preview_every": 0, **changes,
        }  # fmt: skip
        (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\nthree birds\n")
        (tmp_path / "captioned").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / "captioned" / "red.png")
        (tmp_path / "captioned" / "red.txt").write_text("all is red")
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
        return file

    return plan


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """The host's output folder, empty."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


@pytest.fixture
def extension(rlg: SimpleNamespace, run_node: Callable[..., tuple], models: Path) -> SimpleNamespace:
    def nodes_that_give(kind: str) -> list[str]:
        return [name for name, node in rlg.nodes.items() if list(node.RETURN_TYPES[:1]) == [kind]]

    return SimpleNamespace(
        run_node=run_node, module=rlg.module, node=rlg.nodes.__getitem__, nodes_that_give=nodes_that_give
    )


@pytest.fixture
def by_the_node(run_node: Callable[..., tuple], models: Path) -> Callable[..., None]:
    """What the plan says, by the nodes of a graph."""

    def train(name: str, iterations: int, reward: Any = None) -> None:
        model, clip, vae = host_nodes.CheckpointLoaderSimple().load_checkpoint("command_line.safetensors")
        (jpeg,) = run_node("RLGLoadReward", name="jpeg_compressibility", file="auto")
        defaults = {"window": 0, "window_start": 4, "kl_weight": 0.04, "clip_range": 1e-4, "largest_advantage": 5.0}
        (method,) = run_node("RLGFlowGRPO", **METHOD, noise_level=0.7, **defaults)
        inputs = {
            "model": model, "clip": clip, "vae": vae, "prompts": "a red cat\na blue dog\nthree birds",
            "reward": reward or jpeg, "method": method, "name": name, "iterations": iterations, "learning_rate": 0.01,
            "rank": 4, "seed": 5, "width": 64, "height": 64, "preview_every": 0,
        }  # fmt: skip
        run_node("RLGTrainLora", **{name: [value] for name, value in inputs.items()})

    return train


def _lora(output: Path, name: str = "red") -> dict[str, Any]:
    """Everything in the files of a LoRA, in an order that safetensors does not keep."""
    found: dict[str, Any] = {"config": (output / "loras" / name / "adapter_config.json").read_bytes()}
    for file in FILES:
        path = output / "loras" / name / file
        with safe_open(path, "np") as opened:
            found[f"metadata of {file}"] = opened.metadata()
        found |= {f"{tensor} in {file}": values.tobytes() for tensor, values in load_file(path).items()}
    return found


def _iterations(output: Path) -> int:
    """So many are in the state of the run; 0 where there is none yet."""
    try:
        with safe_open(output / "rlg_training" / "red.safetensors", "pt") as file:
            return json.loads(file.metadata()["rlg_training"])["iteration"]
    except FileNotFoundError:
        return 0


def test_a_plan_makes_the_node_s_lora(write, extension, by_the_node, output, run_node) -> None:
    """Bit for bit, its recipe included; with a preview, which changes nothing."""
    by_the_node("node", 2)
    plan = write(preview_every=1, preview_prompts=["a red cat"])
    run = TrainingRun(load_plan(plan), extension)
    assert [step.number for step in run.train()] == [0, 1, 2]
    assert _lora(output) == _lora(output, "node")
    assert "jpeg_compressibility: " in run.report() and str(output / "loras" / "red") in run.report()
    previews = sorted((output / "rlg_training" / "red").iterdir())
    assert [path.name for path in previews] == ["00000.png", "00001.png", "00002.png"]
    assert Image.open(previews[0]).size == (64, 128)

    weighted = [{"name": "jpeg_compressibility", "weight": 2}, {"name": "jpeg_incompressibility", "weight": -0.5}]
    two = [run_node("RLGLoadReward", name=reward["name"], file="auto")[0] for reward in weighted]
    (combined,) = run_node(
        "RLGCombineRewards", reward_1=two[0], weight_1=2.0, normalise="none", reward_2=two[1], weight_2=-0.5
    )
    by_the_node("node of two", 1, combined)
    list(TrainingRun(load_plan(write(name="two", rewards=weighted, iterations=1)), extension).train())
    assert _lora(output, "two") == _lora(output, "node of two")


def test_a_folder_of_pictures_is_learned_from_as_in_the_graph(write, extension, output, run_node, monkeypatch) -> None:
    plan = write(prompts=None, images="pictures", method={"ddpo": {**METHOD, "image_weight": 5.0}}, iterations=1)
    folder = plan.parent / "pictures"
    folder.mkdir()
    for number, (colour, caption) in enumerate({"red": "a red cat", "blue": "a blue dog", "lime": "birds"}.items()):
        Image.new("RGB", (80, 64), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    list(TrainingRun(load_plan(plan), extension).train())

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(plan.parent))
    images, prompts = run_node("RLGLoadImages", folder="pictures", width=64, height=64)
    model, clip, vae = host_nodes.CheckpointLoaderSimple().load_checkpoint("command_line.safetensors")
    (jpeg,) = run_node("RLGLoadReward", name="jpeg_compressibility", file="auto")
    defaults = widgets(extension.node("RLGDDPO"), {**METHOD, "image_weight": 5.0})
    (method,) = run_node("RLGDDPO", **defaults, images=images)
    (without,) = run_node("RLGDDPO", **defaults)
    for name, chosen in {"node": method, "node without": without}.items():
        inputs = {
            "model": model, "clip": clip, "vae": vae, "reward": jpeg, "method": chosen, "name": name, "iterations": 1,
            "learning_rate": 0.01, "rank": 4, "seed": 5, "width": 64, "height": 64, "preview_every": 0,
        }  # fmt: skip
        run_node("RLGTrainLora", prompts=prompts, **{key: [value] for key, value in inputs.items()})
    assert _lora(output) == _lora(output, "node") != _lora(output, "node without")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": None}, "prompts: give a file of prompts, or images"),
        ({"images": "pictures"}, "prompts: give a file of prompts, or images"),
        ({"prompts": None, "images": "gone"}, "images: there is no folder "),
        ({"prompts": None, "images": "captioned"}, "images: flow_grpo does not learn from pictures; take refl"),
        ({"prompts": None, "images": "."}, "images: there is no picture in "),
        ({"rewards": []}, "rewards: list should have at least 1 item"),
        ({"checkpoint": None}, "checkpoint is missing; add it, or diffusion_model, text_encoders and vae"),
        ({"checkpoint": "gone"}, "checkpoint: 'gone' is not in models/checkpoints"),
        (
            {"weight_dtype": "fp8"},
            "weight_dtype: input should be 'default', 'fp8_e4m3fn', 'fp8_e4m3fn_fast' or 'fp8_e5m2'",
        ),
        ({"normalise": "deviation"}, "normalise: input should be 'none' or 'standard deviation'"),
        ({"vae": "gone"}, "vae: 'gone' is not in models/vae"),
        ({"text_encoders": ["gone"]}, "text_encoders[0]: 'gone' is not in models/text_encoders"),
        ({"prompts": {"file": "gone.txt"}}, "prompts: "),
        ({"rewards": ["eule"]}, "rewards[0]: reward: there is no 'eule'"),
        ({"rewards": ["pickscore"]}, "rewards[0]: "),
        ({"rewards": [{"name": "jpeg_compressibility", "weight": 0}]}, "rewards: weight_1: all weights are 0"),
        ({"method": "grpo"}, "method: there is no 'grpo'; use one of "),
        ({"method": {"flow_grpo": {}, "ddpo": {}}}, "method: give one, such as flow_grpo"),
        ({"method": {"flow_grpo": {"gropus": 2}}}, "method.flow_grpo.gropus is not known here; there are steps, cfg"),
        ({"method": {"flow_grpo": {"groups": 0}}}, "method.flow_grpo.groups: 0 cannot be used; take 1 to 1024"),
        ({"method": {"flow_grpo": {"window": 5, "steps": 4}}}, "method.flow_grpo: window: 5 steps from step 3"),
        ({"iterations": True}, "iterations: 'True' is not a whole number"),
        ({"iterations": 2.5}, "iterations: '2.5' is not a whole number"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"negative": 3}, "negative: '3' is not a text"),
        ({"ranks": 3}, "ranks is not known here; there are "),
        ({"name": "../x"}, "name: '../x' cannot be a folder's name"),
        ({"width": 60}, "width: 60 is no multiple of 8"),
    ],
)
def test_a_bad_plan_is_one_sentence_that_names_the_key(write, extension, output, changes, sentence) -> None:
    with pytest.raises(EvaluationError) as caught:
        TrainingRun(load_plan(write(**changes)), extension)
    message = str(caught.value).removeprefix(f"{write(**changes)}: ")
    assert message.startswith(sentence) and message.endswith(".") and "\n" not in message
    assert not output.exists()


@pytest.fixture
def as_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run is that of a worker to whom the first one tells what it has read: prompts, and no earlier state."""
    told = [(["a red cat", "a blue dog"], None), (None, "")]

    class Second(Team):
        def from_first(self, make: Callable[[], Any]) -> Any:
            assert self.place == 1
            return told.pop(0)

    monkeypatch.setattr(training.program.run, "Team", Second)


def test_the_first_worker_alone_reads_the_prompts(write, extension, output, as_second, tmp_path) -> None:
    """The others need no disk in common with it."""
    plan = load_plan(write())
    (tmp_path / "prompts.txt").unlink()
    with closing(TrainingRun(plan, extension, place=1, size=2).train()):
        pass


def test_the_first_worker_alone_asks_whether_the_name_is_free(write, extension, output, request) -> None:
    """The files are with it; what lies in another machine's folder does not matter."""
    plan = load_plan(write(rewards=["gone"]))
    other = output / "loras" / "red"
    other.mkdir(parents=True)
    (other / FILES[0]).touch()
    with pytest.raises(EvaluationError, match="^name: "):
        TrainingRun(plan, extension)
    request.getfixturevalue("as_second")
    with pytest.raises(EvaluationError, match=r"^rewards\[0\]: "):  # what comes after the name
        TrainingRun(plan, extension, place=1, size=2)


def test_numbers_are_read_as_people_write_them(write) -> None:
    file = write(learning_rate=None)
    file.write_text(file.read_text() + "learning_rate: 3e-4\n")
    assert load_plan(file).inputs["learning_rate"] == 3e-4


def test_whole_numbers_are_no_other_setting(write, extension) -> None:
    """The node hands on floats: a run goes on, however the plan writes them."""
    from training.program.run import chosen_method

    plans = [load_plan(write(method={"flow_grpo": {"cfg": c, "kl_weight": k}})) for c, k in ((1, 0), (1.0, 0.0))]
    assert len({str(chosen_method(plan, extension)) for plan in plans}) == 1


def test_a_lora_is_there_as_soon_as_a_state_is(write, extension, output) -> None:
    """So that one remains of a worker that is killed."""
    run = TrainingRun(load_plan(write(iterations=3)), extension)
    with closing(run.train()) as steps:
        next(steps)
        next(steps)
        assert not (output / "loras" / "red").exists()
        run._trainer._next_write = 0.0
        next(steps)
        assert _lora(output)


def test_a_lora_that_another_program_holds_is_written_at_the_end(write, extension, output, caplog, monkeypatch) -> None:
    """On Windows a loader of ComfyUI's keeps a file; that is no reason to end a training of hours."""
    run, replace = TrainingRun(load_plan(write(iterations=3)), extension), os.replace

    def held(new: Path, path: Path) -> None:
        if path.name == FILES[1]:
            raise PermissionError(13, "Access is denied", str(new), None, str(path))
        replace(new, path)

    monkeypatch.setattr(extension.module("files.replacing").os, "replace", held)
    monkeypatch.setattr(extension.module("files.replacing").time, "sleep", lambda _: None)
    with closing(run.train()) as steps:
        next(steps)
        next(steps)
        run._trainer._next_write = 0.0
        assert next(steps).number == 2
        assert "close it in the program that has it open" in caplog.text and "Training goes on" in caplog.text
        monkeypatch.undo()
        assert next(steps).number == 3
    assert _lora(output)


def test_methods_go_by_several_names_and_by_their_defaults(write, extension) -> None:
    from training.program.run import chosen_method

    made = [chosen_method(load_plan(write(method=name)), extension) for name in ("Flow-GRPO", "RLGFlowGRPO")]
    preset = extension.module("training.methods.presets").FLOW_GRPO
    assert made[0] == made[1] and (made[0].method.groups, made[0].method.steps) == (preset.groups, preset.steps)
    for name in ("DiffusionNFT", "diffusion_nft"):
        found = chosen_method(load_plan(write(method=name)), extension).method
        assert found == extension.module("training.methods.presets").DIFFUSION_NFT


def test_the_example_in_the_documentation_is_a_plan(extension, tmp_path) -> None:
    from training.program.plan import widgets
    from training.program.run import chosen_method

    text = (REPO / "docs" / "training_plans.md").read_text(encoding="utf-8")
    block = text[text.index("    name: ") :].split("\n\n", 1)[0]
    (tmp_path / "plan.yaml").write_text(block, encoding="utf-8")
    plan = load_plan(tmp_path / "plan.yaml")
    assert widgets(extension.node("RLGTrainLora"), plan.inputs)["name"] == plan.inputs["name"]
    chosen_method(plan, extension)


# --- Killed runs ----------------------------------------------------------------------------------------------


def _start(plan: Path, models: Path, output: Path, *options: str) -> subprocess.Popen:
    host = ["--", "--cpu", "--use-pytorch-cross-attention", "--output-directory", str(output)]
    command = [*PROGRAM, str(plan), "--host", HOST, "--models", str(models), *options, *host]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _wait_for(running: subprocess.Popen, happened: Callable[[], bool]) -> None:
    """Until something happened, or the program has ended."""
    while running.poll() is None and not happened():
        time.sleep(0.01)


@pytest.mark.slow
def test_runs_that_are_killed_at_random_end_with_the_file_of_the_node(
    write, models, by_the_node, output, tmp_path, times
) -> None:
    by_the_node("red", ITERATIONS)
    expected, place = _lora(output), tmp_path / "killed"
    kills = 1 if times == 1 else 9
    for number in range(kills + 1):  # the last one by Ctrl-C, which keeps what was learned
        before, running = _iterations(place), _start(write(iterations=ITERATIONS), models, place)
        _wait_for(running, lambda before=before: _iterations(place) > min(before, ITERATIONS - 2))
        time.sleep(random.uniform(0, 0.3))
        running.send_signal(signal.SIGKILL if number < kills else signal.SIGINT)
        _, said = running.communicate(timeout=120)
        if number == kills and running.returncode == 130:
            assert said.strip().endswith("Stopped; the same command goes on from here.")
            assert _lora(place), "what was learned before Ctrl-C"
    out, said = (last := _start(write(iterations=ITERATIONS), models, place)).communicate(timeout=300)
    assert last.returncode == 0, said
    assert _lora(place) == expected and str(place) in out


def _descends(process: psutil.Process, ancestor: int) -> bool:
    try:
        return ancestor in [parent.pid for parent in process.parents()]
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@needs_ray
def test_a_team_on_ray_that_loses_a_worker_ends_with_the_file_of_one_worker(
    write, models, by_the_node, output, tmp_path, times
) -> None:
    by_the_node("red", ITERATIONS)
    expected, place = _lora(output), tmp_path / "team"
    size = 2 if times == 1 else 4
    options = ("--ray", "local", "--workers", str(size))
    running = _start(write(iterations=ITERATIONS, threads=1), models, place, *options)

    def workers() -> list[psutil.Process]:
        found = psutil.process_iter(["name", "cmdline"])
        return [p for p in found if str(p.info["name"]).startswith("ray::_Actor") and _descends(p, running.pid)]

    _wait_for(running, lambda: any("_Actor.train" in str(p.info["cmdline"]) for p in workers()))
    assert running.poll() is None, running.communicate()[1]
    time.sleep(random.uniform(0, 3))
    random.choice(workers()).kill()
    out, said = running.communicate(timeout=580)
    assert running.returncode == 0, said
    assert _lora(place) == expected
    assert "A worker died; another team goes on" in said


@pytest.mark.slow
@needs_ray
def test_a_plan_that_a_team_cannot_carry_out_is_one_sentence(write, models, tmp_path) -> None:
    plan = write(threads=1, method={"flow_grpo": {**METHOD, "groups": 1}})
    running = _start(plan, models, tmp_path / "x", "--ray", "local", "--workers", "2")
    _, said = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "\nError: groups: 1 cannot be shared among 2 workers; raise it, or take fewer workers.\n" in said


def test_the_program_takes_what_the_evaluation_takes() -> None:
    options = parse(["plan.yaml", "--host", HOST, "--ray", "auto", "--workers", "3", "--", "--lowvram"])
    assert (options.ray, options.workers, options.comfyui) == ("auto", 3, ("--lowvram",))
