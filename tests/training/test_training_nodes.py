"""RLG Train LoRA as its user meets it: what comes out, Cancel, going on, and what it says to wrong inputs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import folder_paths
import nodes as host_nodes
import pytest
import torch
from safetensors.torch import load_file
from training_tasks import SIDE, Redness

from demo.tiny_model import TinySD3, write_checkpoint
from pairs import CLOSE, empty_latent, relative, task

PROMPTS = ["a red cat\na blue dog\n\n"]
METHOD = {
    "steps": 3, "cfg": 1.0, "noise_level": 0.7, "groups": 1, "group_size": 2, "window": 0, "window_start": 0,
    "kl_weight": 0.04, "clip_range": 1e-4, "largest_advantage": 5.0,
}  # fmt: skip
REFL = {
    "steps": 4, "cfg": 1.0, "first_step": 2, "last_step": 3, "last_steps": 1, "reward_weight": 1e-3, "groups": 1,
    "group_size": 1, "image_weight": 0.0, "image_step": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(models_dir: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint, from the host's loader."""
    write_checkpoint(models_dir / "checkpoints" / "training_nodes.safetensors", TinySD3(), dtype=torch.float32)
    with torch.inference_mode():
        return host_nodes.CheckpointLoaderSimple().load_checkpoint("training_nodes.safetensors")


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The host's output folder, empty, with its LoRAs known to the loaders as in the host's own start."""
    before = folder_paths.get_output_directory()
    loras = folder_paths.folder_names_and_paths["loras"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([*loras[0], str(tmp_path / "loras")], loras[1]))
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture
def train(loaded: tuple, output: Path, run_node: Callable[..., tuple]) -> Callable[..., tuple]:
    """Run the node with small settings; `changes` replace its inputs."""
    model, clip, vae = loaded

    def run(**changes: Any) -> tuple:
        inputs = {
            "model": model, "clip": clip, "vae": vae, "reward": Redness(), "name": "red", "iterations": 2,
            "method": run_node("RLGFlowGRPO", **METHOD)[0], "learning_rate": 1e-2, "rank": 4, "seed": 5,
            "width": SIDE, "height": SIDE, "preview_every": 0, **changes,
        }  # fmt: skip
        return run_node("RLGTrainLora", prompts=changes.pop("prompts", PROMPTS), **_as_lists(inputs))

    return run


def _as_lists(inputs: dict[str, Any]) -> dict[str, list]:
    return {name: value if isinstance(value, list) else [value] for name, value in inputs.items() if name != "prompts"}


class CancelledAt(Redness):
    """Somebody presses Cancel while it scores for the nth time."""

    def __init__(self, call: int) -> None:
        self._left = call

    def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        self._left -= 1
        if self._left == 0:
            comfy.model_management.interrupt_current_processing()
        return super().score(images, prompts)


def _weights(output: Path, name: str = "red") -> dict[str, torch.Tensor]:
    return load_file(output / "loras" / name / "adapter_model.safetensors")


def test_the_tuned_model_is_the_base_with_the_saved_lora(train, loaded, run_node, output) -> None:
    tuned, name, curve, report = train()
    assert curve.ndim == 4 and curve.shape[-1] == 3 and 0 <= curve.min() < curve.max() <= 1
    assert "redness" in report and "nothing left out" in report
    (again, _) = run_node("RLGLoadLora", model=loaded[0], lora_name=name, strength=1.0)
    inputs = task(latent_image=empty_latent(size=SIDE // 8))
    results = [run_node("KSampler", model=m, **inputs)[0]["samples"] for m in (tuned, again, loaded[0])]
    assert relative(results[0], results[1]) < CLOSE
    assert relative(results[0], results[2]) > 1e-3, "the LoRA changes nothing"


def test_a_cancelled_run_keeps_what_was_learned_and_goes_on_to_the_same(train, output) -> None:
    train(name="undisturbed", iterations=3)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(reward=CancelledAt(3), iterations=3)
    assert _weights(output), "what was learned before Cancel"
    *_, report = train(iterations=3)
    for name, weight in _weights(output, "undisturbed").items():
        assert torch.equal(weight, _weights(output)[name]), name
    assert "starts anew" not in report


@pytest.mark.parametrize("method", ["RLGFlowGRPO", "RLGReFL"])
def test_the_page_hears_what_a_backward_pass_takes_before_the_first_one(
    loaded, output, run_node, rlg, monkeypatch, method
) -> None:
    """Where memory runs out it does so there, and few users see the log."""
    live, told = rlg.module("nodes.live_training"), []
    monkeypatch.setattr(live.page, "send", lambda event, data: told.append(data["status"]))
    trainer, _ = rlg.module("nodes.training").begin(
        *loaded, ["a red cat"], Redness(), run_node(method, **(METHOD if method == "RLGFlowGRPO" else REFL))[0],
        name="red", iterations=1, learning_rate=1e-2, rank=4, seed=5, width=SIDE, height=SIDE, negative="",
        batch_size=2,
    )  # fmt: skip
    monkeypatch.setattr(trainer._learner, "iterate", _out_of_memory)
    shown = live.LiveTraining("7", trainer, 1, None)
    with pytest.raises(torch.OutOfMemoryError):
        next(trainer.iterate(1, shown.during))
    shown.stopped()
    takes = r"; a backward pass keeps \d+ MB .* are free\."
    assert told[0] == "drawing the first pictures"
    assert re.fullmatch("drawing the first pictures" + takes, told[1])
    assert re.fullmatch("stopped after iteration 0 of 1" + takes, told[-1])


def _out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("no memory is left")


def test_changed_settings_start_anew_and_say_so(train) -> None:
    train(iterations=1)
    *_, report = train(iterations=1, rank=2)
    assert "starts anew, since settings changed: rank 4 → 2" in report


def test_fewer_iterations_than_were_made_are_spoken_of(train, output, caplog) -> None:
    """The LoRA stays that of all of them; one of so few has another name."""
    train(iterations=3)
    before = _weights(output)
    *_, report = train(iterations=1)
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(output).items())
    told = "iterations: this run has made 3 already, and its LoRA is that of 3; for one of 1, choose another name."
    assert told in report and told in caplog.text
    assert "already" not in train(iterations=4)[-1]


@pytest.mark.parametrize(("method", "inputs", "measured"), [("RLGFlowGRPO", METHOD, True), ("RLGReFL", REFL, False)])
def test_a_distance_that_nobody_measured_is_not_0(train, run_node, monkeypatch, rlg, method, inputs, measured) -> None:
    """In the report, and in the curve."""
    drawn, module = [], rlg.module("nodes.training")
    own = module.training_curve
    monkeypatch.setattr(module, "training_curve", lambda *args: drawn.append(own(*args)) or drawn[-1])
    *_, report = train(method=run_node(method, **inputs)[0])
    assert ("KL to the base" in report) == measured
    labels = [axes.get_ylabel() for axes in drawn[0].axes]
    assert ("KL to base" in labels) == measured and labels[0].startswith("redness")
    assert drawn[0].axes[1 if measured else 0].get_xlabel() == "iteration"


def test_a_curve_shows_what_was_looked_at_and_no_more(rlg) -> None:
    """Clipping without the base model, as with DDPO; and the other way round."""
    module = rlg.module("plots.training_curve")
    for kl, clipped, labels in ((0.0, 0.25, {"clipped share"}), (0.1, 0.0, {"KL to base"}), (0.0, 0.0, set())):
        history = [
            SimpleNamespace(number=n, reward=1.0, spread=0.1, kl=kl, clipped=clipped, seconds=1.0) for n in (1, 2)
        ]
        axes = module.training_curve(history, "reward", "").axes
        assert {one.get_ylabel() for one in axes} - {"reward", ""} == labels
        assert [one.get_xlabel() for one in axes if one.get_xlabel()] == ["iteration"]


def test_the_curve_of_rewards_that_are_measured_by_their_spread_says_what_it_shows(
    train, run_node, monkeypatch, rlg
) -> None:
    """Measured so they would never rise: what is drawn is the sum of the scores as they are."""
    drawn, module = [], rlg.module("nodes.training")
    own = module.training_curve
    monkeypatch.setattr(module, "training_curve", lambda *args: drawn.append(args) or own(*args))
    for normalise, weight, unit in (
        ("standard deviation", 2.0, "weighted sum"),
        ("none", 2.0, "weighted sum"),
        ("standard deviation", 1.0, Redness.unit),
    ):
        (reward,) = run_node("RLGCombineRewards", reward_1=Redness(), weight_1=weight, normalise=normalise)
        train(reward=reward, name=f"{normalise} {weight}", iterations=1)
        (history, name, shown) = drawn.pop()
        assert (name, shown) == (reward.name, unit) and history[0].reward > 0.01


def test_a_lora_that_was_not_trained_here_is_not_replaced(train, output, rlg) -> None:
    theirs = output / "loras" / "theirs" / "adapter_model.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"somebody's work")
    with pytest.raises(ValueError, match=r"^name: there is a LoRA 'theirs' already"):
        train(name="theirs")
    assert rlg.nodes["RLGTrainLora"].validate_inputs(name="theirs").startswith("name: there is a LoRA 'theirs' already")
    assert theirs.read_bytes() == b"somebody's work"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "../outside"}, r"^name: '\.\./outside' cannot be a folder's name"),
        ({"name": ""}, r"^name: '' cannot be a folder's name"),
        ({"prompts": [" \n "]}, r"^prompts: there are none"),
        ({"width": 60}, r"^width: 60 is no multiple of 8"),
    ],
)
def test_wrong_inputs_are_one_sentence_and_leave_nothing(train, output, changes, sentence) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        train(**changes)
    assert "\n" not in str(error.value)
    assert not list(output.rglob("*.*"))


def test_prompts_that_do_not_fit_into_memory_are_one_sentence(train, output, monkeypatch) -> None:
    """Before they are encoded: where memory runs out the system ends the whole ComfyUI, without a word."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 10**7)
    texts = "\n".join(f"number {number}" for number in range(10**5))
    with pytest.raises(
        ValueError, match=r"^prompts: 100000 different ones take [\d.]+ GB of main memory.*\.$"
    ) as error:
        train(prompts=[texts], iterations=10**5)
    fitting = int(str(error.value).rstrip(".").split()[-1])
    assert 0 < fitting < 100
    assert not list(output.rglob("*.*"))


def test_prompts_that_a_run_does_not_come_to_are_not_encoded(train, loaded, output, monkeypatch) -> None:
    """The lists that models were tuned with have tens of thousands, and text encoders take their time."""
    model, clip, _ = loaded
    encoded, encode = [], clip.encode_from_tokens_scheduled
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda tokens: encoded.append(1) or encode(tokens))
    prompts = [f"number {number}" for number in range(500)]
    train(prompts=prompts, iterations=2)
    needed = 2 * METHOD["groups"]
    assert needed <= len(encoded) <= needed + 2 + 2, "the negative prompt, the first one, and those of the preview"
    *_, report = train(prompts=prompts, iterations=3)
    assert "redness" in report and "anew" not in report


class NothingDrawn(Redness):
    """Pictures that are not black were drawn by the model."""

    def gradient_score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        assert not images.any(), "a picture was drawn before the error"
        return super().gradient_score(images, prompts)


class Particular(NothingDrawn):
    """A reward that reads its prompts, and cannot read them all."""

    def check_prompts(self, prompts: Any) -> None:
        if unread := [prompt for prompt in prompts if "blue" in prompt]:
            raise ValueError(f"prompts: nothing is read in '{unread[0]}'.")


@pytest.mark.parametrize("combined", [False, True])
def test_a_prompt_that_the_reward_cannot_read_is_found_before_the_first_picture(
    train, run_node, output, combined
) -> None:
    """Not when its turn comes, hours later, where going on would end at the same place again."""
    reward = Particular()
    if combined:
        (reward,) = run_node("RLGCombineRewards", reward_1=Redness(), weight_1=1.0, normalise="none", reward_2=reward)
    with pytest.raises(ValueError, match=r"^prompts: nothing is read in 'a blue dog'\.$"):
        train(reward=reward)
    assert not list(output.rglob("*.*"))


def test_prompts_of_a_list_are_one_each(rlg) -> None:
    """A prompt of two lines, as a table may have it, is one; what is typed has one per line."""
    lines = rlg.module("nodes.training").lines
    assert lines(["a red\ncat", "a dog\u2028on a mat", " "]) == ["a red\ncat", "a dog\u2028on a mat"]
    assert lines(["a red cat\r\n\r\na dog\u2028on a mat\n"]) == ["a red cat", "a dog\u2028on a mat"]


def test_other_text_encoders_make_another_run(rlg, loaded) -> None:
    encode = rlg.module("training.policy.prompts").Prompts.encode
    _, clip, _ = loaded
    skipped = clip.clone()
    skipped.clip_layer(-2)
    assert encode(clip, ["a"]).digest == encode(clip, ["a"]).digest
    assert len({str(encode(each, ["a"], text).digest) for each in (clip, skipped) for text in ("", "blurry")}) == 4


def test_a_missing_plot_library_is_found_before_the_first_picture(train, output, monkeypatch) -> None:
    """Not when the curve is drawn, after hours of training."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"^plots need the Python package matplotlib, .*: pip install matplotlib\.$"):
        train(reward=NothingDrawn())
    assert not list(output.rglob("*.*"))


def test_a_disk_that_takes_nothing_is_found_before_the_first_picture(train, output) -> None:
    """A file stands where the checkpoints' folder would: nobody can write there, root neither."""
    (output / "rlg_training").write_text("in the way")
    with pytest.raises(OSError, match=r"^name: the checkpoint .* cannot be written \(.*\); make room on the disk.*\.$"):
        train(reward=NothingDrawn())
    assert [path.name for path in output.rglob("*")] == ["rlg_training"]


def test_a_reward_that_compares_pictures_is_not_given_single_ones(train, run_node, rlg, output) -> None:
    """Two rewards in standard deviations, and pictures that are scored one by one: known before any is drawn."""
    reward = rlg.module("rewards.combined").CombinedReward([(NothingDrawn(), 1.0)], "standard deviation")
    widgets = {"steps": 3, "cfg": 1.0, "first_step": 1, "last_step": 1, "last_steps": 1, "reward_weight": 1.0}
    (method,) = run_node("RLGReFL", **widgets, groups=1, group_size=2, image_weight=0.0, image_step=0)[:1]
    with pytest.raises(ValueError, match=r"^images: one picture has no standard deviation; .*\.$"):
        train(reward=reward, method=method)
    assert not list(output.rglob("*.*"))


@pytest.mark.parametrize(
    ("node", "preset"),
    [
        ("RLGFlowGRPO", "FLOW_GRPO"),
        ("RLGDiffusionNFT", "DIFFUSION_NFT"),
        ("RLGDDPO", "DDPO"),
        ("RLGB2DiffuRL", "B2_DIFFU_RL"),
        ("RLGReFL", "REFL"),
        ("RLGSRPO", "SRPO"),
    ],
)
def test_a_method_s_node_starts_as_its_authors_settings(rlg, run_node, node, preset) -> None:
    groups = rlg.nodes[node].INPUT_TYPES()
    widgets = {n: options["default"] for g in groups.values() for n, (_, options) in g.items() if "default" in options}
    assert run_node(node, **widgets)[0].method == getattr(rlg.module("training.methods.presets"), preset)


@pytest.mark.parametrize("last_steps", [1, 2])
def test_fewer_steps_can_start_from_images(run_node, last_steps) -> None:
    steps = {"steps": 4, "first_step": 2, "last_step": 3, "last_steps": last_steps, "image_step": 1}
    settings = {"cfg": 1.0, "reward_weight": 0.1, "groups": 2, "group_size": 1, "image_weight": 0.5}
    chosen = run_node("RLGReFL", **steps, **settings, images=torch.rand(2, 64, 64, 3))[0]
    method = chosen.method
    assert method.from_images and (method.steps, method.image_step, method.image_weight) == (4, 1, 0.5)
    assert (method.first_step, method.gradient_steps) == (2, last_steps)
    assert (method.cfg, method.reward_weight, method.groups) == (1.0, 0.1, 2)


def test_names_are_checked_before_anything_runs(rlg) -> None:
    node = rlg.nodes["RLGTrainLora"]
    assert node.validate_inputs(name="my lora 2") is True
    for name in ("a/b", "..", "C:\\x", "x\0", "x" * 101, ".hidden", "my lora ", "lora.", "aux", "Con.v1", "lpt1"):
        assert "cannot be a folder's name" in node.validate_inputs(name=name)
    assert node.validate_inputs(name=(None,)) is True  # as the host has it where it is linked


def test_the_page_is_shown_pictures_and_the_course(train, monkeypatch) -> None:
    """Previews go the host's way, with the progress; base above, tuned below, a column for each prompt."""
    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id: shown.append((value, total, preview))
    )
    train(preview_every=1, preview_prompts="one\ntwo\nthree")
    values = [value for value, *_ in shown]
    assert values == sorted(values) and values[-1] == shown[-1][1]
    pictures = [preview[1] for *_, preview in shown if preview]
    assert len(pictures) == 3 and all(p.size == (3 * SIDE, 2 * SIDE) for p in pictures)
    first = torch.tensor(list(pictures[0].getdata())).view(2 * SIDE, 3 * SIDE, 3)
    last = torch.tensor(list(pictures[-1].getdata())).view(2 * SIDE, 3 * SIDE, 3)
    assert torch.equal(first[:SIDE], first[SIDE:]), "an untrained LoRA is the base"
    assert torch.equal(last[:SIDE], first[:SIDE]) and not torch.equal(last[SIDE:], first[SIDE:])
