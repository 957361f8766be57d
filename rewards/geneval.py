"""Are the objects that the prompt asks for in the picture: as many, in these colours, in these places?"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .clip import Clip
from .geneval_prompt import COLOURS, OBJECTS, Asked, parse
from .object_detector import Found, ObjectDetector
from .pixels import cropped, pictures
from .protocol import WithoutGradient, check_inputs
from .published import CLIP_L

_LEAST_SURE, _LEAST_SURE_COUNTED = 0.3, 0.9
"""Scores above which an object counts: of one, and where several of a kind are asked for."""
_MOST_OBJECTS = 16
_APART = 0.1
"""Share of their sizes by which two objects must be apart to stand in a relation."""
_GREY = 0x99
_COLOUR_PROMPTS = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)

Colours = Callable[[str, Sequence[Found]], list[str]]
"""Name of a kind and objects of it → the colour of each."""


class GenEval(WithoutGradient):
    """Flow-GRPO's graded GenEval reward (arXiv 2505.05470, section 5.1), for GenEval's prompts (arXiv 2310.11513).

    1 where strict GenEval is content, and partly right pictures in between: the mean over how near each number is
    (1 - |found - asked| / asked, so below 0 where there are more than twice as many) and whether colours and places
    are right. Objects are found by Mask2Former; CLIP ViT-L/14 says which of ten colours each has, as in GenEval.
    """

    name = "geneval"
    unit = "share of the prompt"
    range = (2.0 - _MOST_OBJECTS, 1.0)
    source = "Flow-GRPO, arXiv 2505.05470"

    def __init__(self, path: Path) -> None:
        """Args:
            path: the folder of the detector; CLIP is found by its published name.

        Raises:
            ValueError: one of them cannot be read or holds another model.
            FileNotFoundError: CLIP is not there.
        """
        self._clip = Clip(CLIP_L.find(self.name))
        self._detector = ObjectDetector(path, OBJECTS)

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See `WithNetworks.networks`."""
        return [self._clip.managed.module, self._detector.managed.module]

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`.

        Raises:
            ValueError: also, a prompt is not in GenEval's templates; see `geneval_prompt.parse`.
        """
        check_inputs(images, prompts)
        asked, shown = [parse(prompt) for prompt in prompts], list(pictures(images))
        found = self._detector.find(shown, _LEAST_SURE)
        grades = [
            grade(of_prompt, in_picture, lambda name, objects, picture=picture: self._colours(picture, name, objects))
            for of_prompt, in_picture, picture in zip(asked, found, shown, strict=True)
        ]
        return torch.tensor(grades, dtype=torch.float32)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `PromptReader`."""
        for prompt in prompts:
            parse(prompt)

    @torch.inference_mode()
    def _colours(self, picture: Image.Image, name: str, objects: Sequence[Found]) -> list[str]:
        """By CLIP, of each object cut out on grey."""
        cuts = torch.cat([cropped(_cut_out(picture, one), self._clip.side, "torchvision") for one in objects])
        chosen: list[int] = []
        for part in self._clip.managed.batches(len(cuts)):
            texts = [text.format(colour=colour, name=name) for colour in COLOURS for text in _COLOUR_PROMPTS]
            means = self._clip.of_texts(texts).unflatten(0, (len(COLOURS), -1)).mean(1)
            classes = torch.nn.functional.normalize(means, dim=-1)
            chosen += (self._clip.of_pixels(cuts[part].to(classes.device)) @ classes.T).argmax(-1).tolist()
        return [COLOURS[index] for index in chosen]


def grade(asked: Sequence[Asked], found: Mapping[str, Sequence[Found]], colours: Colours) -> float:
    """Flow-GRPO's `evaluate_reward`: the mean of one number per count, colour and place that was asked for.

    Args:
        asked: what the prompt asks for, each after what it is placed by.
        found: objects of each kind, surest first.
        colours: says what colours objects have.
    """
    parts: list[float] = []
    groups: list[Sequence[Found] | None] = []
    for one in asked:
        least = _LEAST_SURE if one.count == 1 else _LEAST_SURE_COUNTED
        objects = [each for each in found.get(one.name, ()) if each.score > least][:_MOST_OBJECTS]
        parts.append(_nearness(len(objects), one.count))
        right = len(objects) == one.count
        if not right and (one.colour or one.place):
            parts.append(0.0)
        if right and one.colour:
            coloured = colours(one.name, objects).count(one.colour)
            parts.append(_nearness(coloured, one.count))
            right = coloured == one.count
        if right and one.place:
            relation, index = one.place
            others = groups[index]
            right = others is not None and all(relation in relations(a.box, b.box) for a in objects for b in others)
            # Where both are there but not so placed, the published code counts a 0 and a 1.
            parts += [1.0] if right else [0.0] if others is None else [0.0, 1.0]
        groups.append(objects if right else None)
    return statistics.fmean(parts)


def relations(box: Sequence[float], other: Sequence[float]) -> set[str]:
    """How a box lies to another, as GenEval has it: by their centres, if those are further apart than sizes explain.

    Args:
        box, other: left, top, right, bottom.
    """
    corners = np.array([box, other], dtype=float).reshape(2, 2, 2)
    (centre, other_centre), sizes = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    offset = centre - other_centre
    beyond = np.maximum(np.abs(offset) - _APART * sizes, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    across, down = beyond / np.linalg.norm(offset)
    holds = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {relation for relation, true in holds.items() if true}


def _nearness(found: int, asked: int) -> float:
    return 1 - abs(found - asked) / asked


def _cut_out(picture: Image.Image, found: Found) -> torch.Tensor:
    """IMAGE (1, height, width, 3) of the box, with what is not the object in grey."""
    left, top, right, bottom = found.box
    shown = np.where(found.mask[..., None], np.asarray(picture), np.uint8(_GREY))[top:bottom, left:right]
    return torch.from_numpy(shown)[None].float() / 255
