"""What an evaluation samples and scores is what the nodes give for the same inputs, whatever it is computed next to."""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.cli_args
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import tiny_rewards
from demo.tiny_encoders import clip_l_state_dict, vae_state_dict
from demo.tiny_model import TinySD3, mmdit_state_dict, write_checkpoint, write_peft_adapter
from evaluation import comfy_renderer
from evaluation.comfy_renderer import ComfyRenderer
from evaluation.errors import EvaluationError
from evaluation.host import _on_cpu, add_model_folders
from evaluation.plan import Batch, Plan, load_plan
from evaluation.worker import Picture
from files.pictures import png
from rewards import registry

pytestmark = pytest.mark.slow

PROMPTS = ("a red circle", "")
KEYS = ("prompt", "seed", "cell")


@pytest.fixture(scope="module", autouse=True)
def files(models_dir: Path) -> Iterator[None]:
    path = write_checkpoint(models_dir / "checkpoints" / "evaluated.safetensors", TinySD3(), dtype=torch.float32)
    write_peft_adapter(models_dir / "loras" / "evaluated", TinySD3())
    yield
    path.unlink()


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    def make(**changes: Any) -> Plan:
        settings = {
            "output": "out",
            "pairs": [{"checkpoint": "evaluated.safetensors", "lora": "evaluated"}],
            "prompts": {"file": "prompts.txt"},
            "seeds": [3, 5],
            "scales": [0, 1.6],
            "schedules": [{"combined_generation": {"switch_percent": 0.5, "scale": 1}}],
            "steps": 2,
            "cfg": 3.0,
            "width": 64,
            "height": 48,
            "negative": "blurry",
            "rewards": ["jpeg_compressibility", "jpeg_incompressibility"],
            **changes,
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings))
        return load_plan(tmp_path / "plan.yaml")

    return make


@pytest.fixture
def extension(rlg: SimpleNamespace, run_node: Callable[..., tuple]) -> SimpleNamespace:
    return SimpleNamespace(run_node=run_node, module=rlg.module)


def _key(picture: Picture) -> tuple[int, int, int]:
    return picture.prompt, picture.seed, picture.cell


def _pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png)))


def test_pictures_and_scores_are_those_of_the_nodes(plan: Callable, extension: Any, run_node: Callable) -> None:
    wanted = plan()
    pictures = {_key(p): p for p in ComfyRenderer(wanted, extension).render(Batch(0, 4, PROMPTS))}
    assert pictures.keys() == {(prompt, seed, cell) for prompt in (4, 5) for seed in (0, 1) for cell in (0, 1, 2)}

    base, clip, vae = run_node("CheckpointLoaderSimple", ckpt_name="evaluated.safetensors")
    tuned, _ = run_node("RLGLoadLora", model=base, lora_name="evaluated", strength=1.0)
    (negative,) = run_node("CLIPTextEncode", clip=clip, text="blurry")
    (latent,) = run_node("EmptyLatentImage", width=64, height=48, batch_size=1)
    (switch,) = run_node("RLGCombinedGeneration", switch_percent=0.5, scale=1.0)
    for (prompt, seed, cell), picture in pictures.items():
        (positive,) = run_node("CLIPTextEncode", clip=clip, text=PROMPTS[prompt - 4])
        schedule = {"schedule": switch} if cell == 2 else {}
        (sampled,) = run_node(
            "RLGKSampler", base=base, tuned=tuned, seed=wanted.seeds[seed], steps=2, cfg=3.0, sampler_name="euler",
            scheduler="normal", positive=positive, negative=negative, latent_image=latent, denoise=1.0,
            scale=(0.0, 1.6, 0.0)[cell], **schedule,
        )  # fmt: skip
        (images,) = run_node("VAEDecode", samples=sampled, vae=vae)
        apart = np.abs(_pixels(picture).astype(int) - (images[0] * 255).numpy())
        assert apart.max() < 1.5  # cut to whole numbers, and sampled up to rounding
        file = io.BytesIO()
        Image.fromarray(_pixels(picture)).save(file, "JPEG", quality=95)
        assert picture.scores[1] == pytest.approx(len(file.getvalue()) / 1000) == -picture.scores[0]
    assert len({picture.png for picture in pictures.values()}) == len(pictures)


def test_a_vae_of_videos_gives_the_same_pictures(plan: Callable, extension: Any, monkeypatch: Any) -> None:
    """As those of Qwen-Image and Wan, which decode to (batch, frames, height, width, 3)."""
    wanted = plan(seeds=[3])
    expected = ComfyRenderer(wanted, extension).render(Batch(0, 0, PROMPTS[:1]))
    decode = comfy.sd.VAE.decode
    monkeypatch.setattr(comfy.sd.VAE, "decode", lambda self, samples: decode(self, samples)[:, None])
    assert ComfyRenderer(wanted, extension).render(Batch(0, 0, PROMPTS[:1])) == expected


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint's parts as files of their own, by the plan's keys."""
    models = tmp_path_factory.mktemp("parts")
    weights = {
        "diffusion_models": mmdit_state_dict(TinySD3()), "text_encoders": clip_l_state_dict(), "vae": vae_state_dict()
    }  # fmt: skip
    for folder, tensors in weights.items():
        (models / folder).mkdir()
        save_file({key: t.contiguous() for key, t in tensors.items()}, models / folder / "part.safetensors")
        folder_paths.add_model_folder_path(folder, str(models / folder))
    name = "part.safetensors"
    return {"diffusion_model": name, "text_encoders": [name], "type": "sd3", "vae": name}


def test_files_of_their_own_give_the_pictures_of_their_checkpoint(
    plan: Callable, extension: Any, parts: dict[str, Any]
) -> None:
    of_checkpoint = plan(seeds=[3])
    expected = ComfyRenderer(of_checkpoint, extension).render(Batch(0, 0, PROMPTS[:1]))
    renderer = ComfyRenderer(plan(seeds=[3], pairs=[{**parts, "lora": "evaluated"}]), extension)
    assert renderer.render(Batch(0, 0, PROMPTS[:1])) == expected
    folders = {"diffusion_models", "text_encoders", "vae"}
    assert renderer.describe()["files"].keys() >= {f"{folder}/part.safetensors" for folder in folders}


def test_a_diffusion_model_is_the_tuned_one(plan: Callable, extension: Any, parts: dict[str, Any]) -> None:
    same = {**parts, "tuned_diffusion_model": "part.safetensors"}
    with pytest.raises(EvaluationError, match=r"^pairs\[0\]: tuned: it has the same weights as base"):
        ComfyRenderer(plan(pairs=[same]), extension).render(Batch(0, 0, PROMPTS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "gone"}, "vae: 'gone' is not in models/vae"),
        ({"text_encoders": ["gone"]}, r"text_encoders\[0\]: 'gone' is not in models/text_encoders"),
        ({"lora": None, "tuned_diffusion_model": "gone"}, "tuned_diffusion_model: 'gone' is not in models/diffusion_m"),
        ({"vae": None}, "vae is missing: the model's file has none; name its own"),
        ({"type": "gone"}, "type: ComfyUI knows no text encoders for 'gone'; use one of "),
    ],
)
def test_parts_that_are_not_there_are_one_sentence(
    plan: Callable, extension: Any, parts: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=rf"^pairs\[0\]: {message}"):
        pair = {**parts, "lora": "evaluated", **changes}
        ComfyRenderer(plan(pairs=[pair]), extension).render(Batch(0, 0, PROMPTS[:1]))


def test_pictures_have_the_plans_size_whatever_the_vae_makes_of_a_latent(plan, extension, monkeypatch) -> None:
    """Older hosts' empty latent is that of a VAE which makes eight pixels of a number."""
    sampled: list[torch.Size] = []
    monkeypatch.setattr(comfy.sd.VAE, "spacial_compression_encode", lambda vae: 16)
    monkeypatch.setattr(
        comfy.sd.VAE, "decode", lambda vae, latents: sampled.append(latents.shape) or torch.zeros(1, 48, 64, 3)
    )
    made = plan(seeds=[3])
    ComfyRenderer(made, extension).render(Batch(0, 0, PROMPTS[:1]))
    assert {tuple(shape[-2:]) for shape in sampled} == {(3, 4)}
    with pytest.raises(EvaluationError, match=r"^height: 40 is no multiple of 16, as this VAE needs; change it\.$"):
        ComfyRenderer(plan(seeds=[3], height=40), extension).render(Batch(0, 0, PROMPTS[:1]))


def test_pictures_do_not_depend_on_the_batch_they_came_in(plan: Callable, extension: Any) -> None:
    """To the last bit: so any number of workers, and any rerun, gives the same files."""
    pairs = [{"checkpoint": "evaluated.safetensors", "lora": "evaluated", "name": name} for name in ("one", "two")]
    wanted = plan(pairs=pairs)
    together = ComfyRenderer(wanted, extension).render(Batch(0, 0, PROMPTS))
    other = ComfyRenderer(wanted, extension)
    other.render(Batch(1, 1, PROMPTS[1:]))
    alone = [*other.render(Batch(0, 1, PROMPTS[1:])), *other.render(Batch(0, 0, PROMPTS[:1]))]
    assert sorted(alone, key=_key) == sorted(together, key=_key)


def test_the_next_prompt_is_sampled_while_a_picture_is_compressed(
    plan: Callable, extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would wait a fifth of a second for each picture of 1024 x 1024."""
    wanted = plan()
    expected = ComfyRenderer(wanted, extension).render(Batch(0, 0, PROMPTS))
    calls: list[int] = []
    second_prompt = threading.Event()
    sampled = ComfyRenderer._sampled

    def sample(renderer: ComfyRenderer, *inputs: Any) -> np.ndarray:
        calls.append(0)
        if len(calls) > len(wanted.seeds):
            second_prompt.set()
        return sampled(renderer, *inputs)

    def compress(picture: np.ndarray) -> bytes:
        assert second_prompt.wait(60), "the second prompt waits for the first one's files"
        return png(picture)

    monkeypatch.setattr(ComfyRenderer, "_sampled", sample)
    monkeypatch.setattr(comfy_renderer, "png", compress)
    assert ComfyRenderer(wanted, extension).render(Batch(0, 0, PROMPTS)) == expected


def test_a_picture_that_cannot_be_compressed_ends_its_batch(
    plan: Callable, extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(picture: np.ndarray) -> bytes:
        raise MemoryError("too large")

    monkeypatch.setattr(comfy_renderer, "png", fails)
    with pytest.raises(MemoryError, match="too large"):
        ComfyRenderer(plan(), extension).render(Batch(0, 0, PROMPTS))


def test_what_ends_a_batch_does_not_wait_for_all_its_files(
    plan: Callable, extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is heard after the one that is being compressed."""
    wanted = plan()
    compressing, ending = threading.Event(), threading.Event()
    calls: list[int] = []
    compressed: list[bytes] = []
    sampled = ComfyRenderer._sampled

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, **how: Any) -> None:
            super().shutdown(wait=False, **how)
            ending.set()
            super().shutdown(wait)

    def sample(renderer: ComfyRenderer, *inputs: Any) -> np.ndarray:
        if len(calls) == len(wanted.seeds):
            assert compressing.wait(60)
            raise KeyboardInterrupt
        calls.append(0)
        return sampled(renderer, *inputs)

    def compress(picture: np.ndarray) -> bytes:
        compressing.set()
        assert ending.wait(60)
        compressed.append(png(picture))
        return compressed[-1]

    monkeypatch.setattr(comfy_renderer, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(ComfyRenderer, "_sampled", sample)
    monkeypatch.setattr(comfy_renderer, "png", compress)
    with pytest.raises(KeyboardInterrupt):
        ComfyRenderer(wanted, extension).render(Batch(0, 0, PROMPTS))
    assert len(compressed) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": [{"checkpoint": "gone", "lora": "evaluated"}]}, r"pairs\[0\]: checkpoint: 'gone' is not in models/"),
        ({"pairs": [{"checkpoint": "evaluated.safetensors", "lora": "gone"}]}, r"pairs\[0\]: lora_name: 'gone' is not"),
        ({"sampler": "eule"}, "sampler: there is no 'eule'"),
        ({"scheduler": "eule"}, "scheduler: there is no 'eule'"),
        ({"rewards": ["eule"]}, r"rewards\[0\]: reward: there is no 'eule'"),
    ],
)
def test_what_the_host_does_not_have_is_one_sentence(
    plan: Callable, extension: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=f"^{message}") as caught:
        ComfyRenderer(plan(**changes), extension)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_the_same_model_twice_is_no_pair(plan: Callable, extension: Any) -> None:
    same = {"checkpoint": "evaluated.safetensors", "tuned_checkpoint": "evaluated.safetensors"}
    with pytest.raises(EvaluationError, match=r"^pairs\[0\]: tuned: it has the same weights as base"):
        ComfyRenderer(plan(pairs=[same]), extension).render(Batch(0, 0, PROMPTS))


@pytest.mark.parametrize(
    ("name", "data", "changes"),
    [
        ("damaged.safetensors", b"no model", {"checkpoint": "damaged.safetensors", "lora": "evaluated"}),
        ("unet.safetensors", None, {"checkpoint": "unet.safetensors", "lora": "evaluated"}),
        (
            "damaged.safetensors",
            b"",
            {"checkpoint": "evaluated.safetensors", "tuned_checkpoint": "damaged.safetensors"},
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(
    plan: Callable, extension: Any, models_dir: Path, name: str, data: bytes | None, changes: dict[str, str]
) -> None:
    file = models_dir / "checkpoints" / name
    if data is None:
        write_checkpoint(file, TinySD3(), with_clip=False, with_vae=False)
    else:
        file.write_bytes(data)
    try:
        with pytest.raises(EvaluationError, match=r"^pairs\[0\]: ") as caught:
            ComfyRenderer(plan(pairs=[changes]), extension).render(Batch(0, 0, PROMPTS))
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    finally:
        file.unlink()


class Stubborn:
    """A reward that cannot score every picture, as text_rendering cannot without a text in quotes."""

    name = "stubborn"

    def __init__(self, answer: float | ValueError) -> None:
        self._answer = answer

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if isinstance(self._answer, ValueError):
            raise self._answer
        return torch.full((len(images),), self._answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ValueError("prompts: there is\nno text in 'a red circle'; write one."), "prompts: there is no text in 'a red"),
        (math.nan, "stubborn gives no finite number; check its weights"),
    ],
)
def test_a_picture_that_cannot_be_scored_is_one_sentence(
    plan: Callable, extension: Any, monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    renderer = ComfyRenderer(plan(), extension)
    monkeypatch.setattr(renderer, "_rewards", [Stubborn(answer)])
    with pytest.raises(EvaluationError) as caught:
        renderer.render(Batch(0, 0, PROMPTS))
    assert str(caught.value).startswith(f"rewards[0]: {message}") and "\n" not in str(caught.value)


def test_a_prompt_that_a_reward_cannot_read_is_found_before_the_first_picture(
    plan: Callable, extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader(Stubborn):
        def check_prompts(self, prompts: list[str]) -> None:
            raise ValueError(f"prompts: nothing is read in '{prompts[0]}'.")

    wanted = plan()
    monkeypatch.setattr(registry, "load", lambda *_: Reader(1.0))
    ComfyRenderer(wanted, extension)  # as on a machine that does not have the file
    wanted.prompts.file.write_text(PROMPTS[0])
    with pytest.raises(EvaluationError, match=rf"^rewards\[0\]: prompts: nothing is read in '{PROMPTS[0]}'\.$"):
        ComfyRenderer(wanted, extension)


def test_it_says_what_the_pictures_depend_on(
    plan: Callable, extension: Any, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA that was trained again has the same name and size; its pictures must not be mixed with the former's."""

    def files() -> dict[str, str]:
        return ComfyRenderer(plan(), extension).describe()["files"]

    before = files()
    assert before.keys() == {"evaluated.safetensors", "loras/evaluated", "loras/evaluated, adapter_config.json"}
    assert files() == before
    monkeypatch.setattr(sys, "argv", ["main.py", "--cpu", "--fast"])
    assert ComfyRenderer(plan(), extension).describe()["arguments of ComfyUI"] == "--cpu --fast"
    for name, changed in (
        ("adapter_config.json", "loras/evaluated, adapter_config.json"),
        ("adapter_model.safetensors", "loras/evaluated"),
    ):
        file = models_dir / "loras" / "evaluated" / name
        data = file.read_bytes()
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        try:
            assert {key for key, value in files().items() if value != before[key]} == {changed}
        finally:
            file.write_bytes(data)


def test_it_says_what_its_scores_depend_on(plan: Callable, extension: Any, reward_models: Path) -> None:
    """All files of a reward: aesthetic is a head on a CLIP that has a file of its own."""
    tiny_rewards.write_clip_l(reward_models)
    torch.save(tiny_rewards.head_state(tiny_rewards.JOINT), reward_models / "sac+logos+ava1-l14-linearMSE.pth")
    files = ComfyRenderer(plan(rewards=["aesthetic"]), extension).describe()["files"]
    assert files.keys() >= {"aesthetic", "aesthetic, clip-vit-large-patch14"}
    (reward_models / "clip-vit-large-patch14" / ".DS_Store").write_bytes(b"\0")  # somebody looked into the folder
    assert ComfyRenderer(plan(rewards=["aesthetic"]), extension).describe()["files"] == files


def test_loras_that_were_trained_here_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's main.py adds the folder that RLG Train LoRA writes to, and no evaluation goes through main.py."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    known = {kind: ([*folders], types) for kind, (folders, types) in folder_paths.folder_names_and_paths.items()}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    trained = tmp_path / "loras" / "mine" / "adapter_model.safetensors"
    trained.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, trained)
    add_model_folders(Path(folder_paths.base_path), [])
    assert str(Path("mine") / trained.name) in folder_paths.get_filename_list("loras")


@pytest.mark.parametrize(
    "arguments",
    [(), ("--lowvram",), ("--use-quad-cross-attention", "--highvram"), ("--cpu",), ("--output-directory", "here")],
)
def test_without_a_gpu_it_runs_on_the_cpu_whatever_else_is_asked_for(arguments: tuple) -> None:
    """By arguments that ComfyUI takes together."""
    parsed = comfy.cli_args.parser.parse_args([*_on_cpu(arguments)])
    assert parsed.cpu and parsed.use_pytorch_cross_attention == ("--use-quad-cross-attention" not in arguments)
    assert parsed.output_directory == ("here" if "here" in arguments else None)
    assert _on_cpu(("--directml",)) == ("--directml",)
