"""What a prompt of GenEval asks for: how many of which objects, in which colours, and where."""

from __future__ import annotations

import re
from dataclasses import dataclass

OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes in COCO's order, as GenEval calls them."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_IRREGULAR = {
    "people": "person",
    "sheep": "sheep",
    "knives": "knife",
    "computer mice": "computer mouse",
    "skis": "skis",
    "scissors": "scissors",
}
# GenEval adds "s", or "es" after "s"; English adds "es" in other places too.
_PLURALS = {f"{name}{ending}": name for name in OBJECTS for ending in ("s", "es")} | _IRREGULAR
_BETWEEN = re.compile(rf" (and|{'|'.join(RELATIONS)}) ")
_CLAUSE = re.compile(rf"(?P<count>an?|{'|'.join(NUMBERS)}) (?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<noun>.+)")
_BEGINNING = "a photo of "


@dataclass(frozen=True)
class Asked:
    """Objects of one kind.

    Attributes:
        name: one of OBJECTS.
        count: how many, exactly.
        colour: one of COLOURS, of every one of them; None = any.
        place: one of RELATIONS and the index of what they are placed by; None = anywhere.
    """

    name: str
    count: int = 1
    colour: str | None = None
    place: tuple[str, int] | None = None


def parse(prompt: str) -> tuple[Asked, ...]:
    """What is asked for, in the order in which it is checked: what others are placed by comes before them.

    The templates are GenEval's (arXiv 2310.11513, table 1), combined as one likes: "a photo of" one or more objects
    with numbers and colours, joined by "and"; or two of them, with a relation between.

    Raises:
        ValueError: the prompt is no such text, or an object is not one of COCO's.
    """
    text = " ".join(prompt.lower().split()).rstrip(".")
    if not text.startswith(_BEGINNING):
        raise _unknown(prompt, f"it does not begin with '{_BEGINNING.strip()}'")
    first, *rest = _BETWEEN.split(text.removeprefix(_BEGINNING))
    words, clauses = rest[0::2], [first, *rest[1::2]]
    asked = [_clause(clause, prompt) for clause in clauses]
    if len({one.name for one in asked}) < len(asked):
        raise _unknown(prompt, "it names the same object twice")
    if set(words) <= {"and"}:
        return tuple(asked)
    if len(words) > 1:
        raise _unknown(
            prompt, f"'{next(word for word in words if word != 'and')}' stands between more than two objects"
        )
    placed, by = asked
    return by, Asked(placed.name, placed.count, placed.colour, (words[0], 0))


def _clause(clause: str, prompt: str) -> Asked:
    found = _CLAUSE.fullmatch(clause)
    if found is None:
        raise _unknown(prompt, f"'{clause}' is not a number or article with an object")
    count = 1 if found["count"] in ("a", "an") else 1 + NUMBERS.index(found["count"])
    noun = found["noun"]
    name = noun if noun in OBJECTS else _PLURALS.get(noun)
    if name is None:
        raise _unknown(prompt, f"'{noun}' is none of the 80 objects of COCO, which the detector knows")
    return Asked(name, count, found["colour"])


def _unknown(prompt: str, what: str) -> ValueError:
    return ValueError(
        f"prompts: geneval cannot check '{prompt[:80]}': {what}; write it as 'a photo of two red apples and a dog' or "
        "'a photo of a dog left of a cat'."
    )
