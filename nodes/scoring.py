"""Nodes that score pictures and choose among them."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io

from ..rewards import host, pick, registry
from ..rewards.protocol import Reward
from ..rlg_sampler.sweeps.labels import saying
from .inputs import answer, labels_input, text_output
from .lists import as_list, check_number, only, per_image
from .search import search_aliases

RewardType = io.Custom("RLG_REWARD")
AUTO = "auto"


class RLGLoadReward(io.ComfyNode):
    """A reward by name, with its weights from disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGLoadReward",
            display_name="RLG Load Reward",
            category="RLG/evaluation",
            description="A reward model: it says what a picture is worth. Weights are read from models/reward_models; "
            "nothing is downloaded.",
            **search_aliases(
                "reward model",
                "pickscore",
                "imagereward",
                "hps",
                "hpsv2",
                "aesthetic score",
                "clip score",
                "ocr",
                "mps",
                "geneval",
                "object detection",
            ),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(registry.KINDS),
                    default="jpeg_compressibility",
                    tooltip="pickscore, imagereward, hps_v2.1, mps: what people prefer, given the prompt. aesthetic: "
                    "what they like, without it. clip_score: does it show the prompt. text_rendering: is the prompt's "
                    "quoted text in it. geneval: are objects, numbers, colours and places of a prompt such as 'a photo "
                    "of two red apples' right. jpeg_*: how small or large the file gets; needs no weights.",
                ),
                file_input("the reward"),
            ],
            outputs=[
                RewardType.Output(
                    display_name="reward", tooltip="For RLG Score, RLG Combine Rewards and RLG Train LoRA."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None, file: str | None = None) -> bool | str:
        """Are the files there?"""
        return answer(lambda name, file: registry.files_of(name, chosen(file)), name, file)

    @classmethod
    def execute(cls, name: str, file: str) -> io.NodeOutput:
        return io.NodeOutput(registry.load(name, chosen(file)))


class RLGScore(io.ComfyNode):
    """One score per picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGScore",
            display_name="RLG Score",
            category="RLG/evaluation",
            description="Scores pictures for their prompt, in the reward model's own scale: each on its own, whatever "
            "else is in the batch. Higher is better.",
            **search_aliases(
                "reward", "rate images", "image quality", "pickscore", "imagereward", "aesthetic score", "clip score"
            ),
            inputs=[
                io.Image.Input("images", tooltip="The pictures; also a list of batches, such as one per prompt."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the pictures should show. Or a list: one prompt per batch, or one per picture. "
                    "Rewards that look at the pictures alone ignore it.",
                ),
                RewardType.Input("reward", tooltip="From RLG Load Reward."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="One score per picture, in their order."
                ),
                io.Float.Output(display_name="mean", tooltip="The mean over all pictures."),
                text_output("text", "All scores as text."),
                io.String.Output(
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="The prompt of each picture, for RLG Diversity and RLG Plot.",
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls, images: torch.Tensor | list[torch.Tensor], prompt: str | list[str], reward: Reward | list[Reward]
    ) -> io.NodeOutput:
        batches, of_reward = as_list(images), only(reward)
        prompts = per_image(prompt, batches)
        if not prompts:
            raise ValueError("images: there are none to score.")
        scores, done = [], 0
        for batch in batches:
            scores += of_reward.score(batch, prompts[done : done + len(batch)]).tolist()
            done += len(batch)
        mean = sum(scores) / len(scores)
        lines = [f"{of_reward.name}: mean {mean:.4f} {of_reward.unit} of {len(scores)} pictures ({of_reward.source})"]
        lines += [f"{number}: {score:.4f}" for number, score in enumerate(scores, start=1)]
        return io.NodeOutput(scores, mean, "\n".join(lines), prompts)


class RLGPickBest(io.ComfyNode):
    """The best pictures of a batch, by one or several rewards."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGPickBest",
            display_name="RLG Pick Best",
            category="RLG/evaluation",
            description="Keeps the pictures with the highest scores: of a sweep, of branches, of many seeds.",
            **search_aliases("best of n", "select images", "rank images", "filter images"),
            inputs=[
                io.Image.Input("images", tooltip="The pictures to choose from."),
                _scores_input("scores", "One score per picture, from RLG Score."),
                io.Int.Input("count", default=1, min=1, max=10000, tooltip="How many to keep, best first."),
                labels_input(
                    "One label per picture, from RLG Sweep or RLG Branch, to see which were kept.", optional=True
                ),
                _scores_input("scores_2", "Scores of a second reward, for the same pictures.", optional=True),
                _scores_input("scores_3", "Scores of a third reward, for the same pictures.", optional=True),
                _weight_input("weight", "the first reward"),
                _weight_input("weight_2", "the second reward"),
                _weight_input("weight_3", "the third reward"),
                io.String.Input(
                    "among",
                    default="",
                    optional=True,
                    tooltip="Choose only among pictures whose labels say this, such as scale 1.6 or cfg 3, scale 2. "
                    "Empty = among all.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The best pictures, best first."),
                io.String.Output(display_name="labels", is_output_list=True, tooltip="Their labels."),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="Their positions among all pictures, counted from 0 (as in Latent From Batch).",
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor | list[torch.Tensor],
        scores: float | list[float],
        count: int | list[int],
        labels: str | list[str] | None = None,
        scores_2: float | list[float] | None = None,
        scores_3: float | list[float] | None = None,
        weight: float | list[float] = 1.0,
        weight_2: float | list[float] = 1.0,
        weight_3: float | list[float] = 1.0,
        among: str | list[str] = "",
    ) -> io.NodeOutput:
        pictures = [picture for batch in as_list(images) for picture in batch]
        names = [f"picture {n + 1}" for n in range(len(pictures))] if labels is None else as_list(labels)
        given = [(scores, weight), (scores_2, weight_2), (scores_3, weight_3)]
        rewards = [(as_list(values), only(factor)) for values, factor in given if values is not None]
        for what, values in [("labels", names), *(("scores", values) for values, _ in rewards)]:
            check_number(what, values, len(pictures))
        there = saying(names, only(among))
        best = [there[n] for n in pick.best([([values[i] for i in there], f) for values, f in rewards], only(count))]
        if len({pictures[index].shape for index in best}) > 1:
            raise ValueError("images: the best have different sizes; make them equal before (Upscale Image).")
        return io.NodeOutput(torch.stack([pictures[i] for i in best]), [names[i] for i in best], best)


def file_input(what: str) -> io.Combo.Input:
    """A file or folder under models/reward_models."""
    return io.Combo.Input(
        "file",
        options=[AUTO, *host.weights()],
        default=AUTO,
        tooltip=f"Weights of {what}, from models/reward_models: a file, or a folder as downloaded from Hugging Face. "
        "auto = the one with the published name; where it is missing, the error says what to get.",
    )


def chosen(file: str) -> str | None:
    """What a file input means; None takes the one with the published name."""
    return None if file == AUTO else file


def _scores_input(name: str, tooltip: str, optional: bool = False) -> io.Float.Input:
    return io.Float.Input(name, optional=optional, force_input=True, tooltip=tooltip)


def _weight_input(name: str, what: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=-100.0,
        max=100.0,
        step=0.1,
        round=0.001,
        optional=True,
        tooltip=f"How much {what} counts: 0 = not at all, below 0 = the lower the better. Of several rewards each "
        "is measured in standard deviations over these pictures.",
    )
