"""The plan of a training run: a YAML file that says what the nodes' inputs say in a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from evaluation.errors import EvaluationError
from evaluation.plan import AnyPath, ModelFile, ModelFiles, Number, Positive, PromptFile, Text
from evaluation.plan_file import read_plan
from files.captioned import Captioned, captioned
from rewards.combined import Normalise, Unreadable
from rlg_sampler.messages import shown


class WeightedReward(ModelFile):
    """A reward, and how much it counts among several."""

    weight: Number = 1.0


class Plan(ModelFiles):
    """What to train, on what, for what.

    Names that are not here are inputs of RLG Train LoRA: `inputs`.
    """

    model_config = ConfigDict(extra="allow")

    prompts: PromptFile | None = None
    images: AnyPath | None = None
    """A folder of pictures whose captions are the prompts, for methods that learn from real ones."""
    preview_prompts: tuple[Text, ...] = ()
    rewards: tuple[WeightedReward, ...] = Field(min_length=1, max_length=4)
    normalise: Normalise = "none"
    unreadable: Unreadable = "refuse"
    method: Mapping[str, Mapping[str, Any]]
    """Name of the method's node → its inputs."""
    threads: Positive | None = None
    """CPU threads of a worker; None leaves it to PyTorch."""

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {name: {} if inputs is None else inputs for name, inputs in value.items()}
        return value

    @model_validator(mode="after")
    def _whole(self) -> Plan:
        if len(self.method) != 1:
            raise ValueError("method: give one, such as flow_grpo, with its inputs")
        if not (self.checkpoint or self.diffusion_model):
            raise ValueError("checkpoint is missing; add it, or diffusion_model, text_encoders and vae")
        if (self.prompts is None) == (self.images is None):
            raise ValueError("prompts: give a file of prompts, or images, a folder of pictures with captions")
        return self

    @property
    def inputs(self) -> dict[str, Any]:
        """Of RLG Train LoRA, as they are in the file."""
        return {**(self.model_extra or {}), "preview_prompts": "\n".join(self.preview_prompts)}

    def read_images(self) -> list[Captioned]:
        """Raises EvaluationError: the folder does not hold them. A plan with `prompts` has none."""
        if self.images is None:
            return []
        if not self.images.is_dir():
            raise EvaluationError(f"images: there is no folder {self.images}; put pictures with captions there.")
        try:
            return captioned(self.images)
        except ValueError as error:
            raise EvaluationError(f"images: {str(error).removeprefix('folder: ')}") from None


def load_plan(file: Path) -> Plan:
    """As `read_plan`."""
    return read_plan(file, Plan)


_TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
_WORDS = {"INT": "a whole number", "FLOAT": "a number", "STRING": "a text", "BOOLEAN": "true or false"}


def widgets(node: type, given: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """A value for each widget of a node: as given, or else its default.

    Args:
        node: of the host.
        given: by the names of its inputs.
        place: before these names in the plan, for messages.

    Raises:
        EvaluationError: the node has no such widget, or its widget cannot have this value.
    """
    inputs = {name: entry for group in node.INPUT_TYPES().values() for name, entry in group.items()}
    known = {name: entry for name, entry in inputs.items() if entry[0] in (*_TYPES, "COMBO")}
    for name, value in given.items():
        if name not in known:
            raise EvaluationError(f"{place}{shown(name)} is not known here; there are {', '.join(known)}.")
        _check(f"{place}{name}", value, *known[name])
    values = {name: given.get(name, options.get("default")) for name, (_, options) in known.items()}
    # As the host hands them over: a whole number is no other setting.
    return {name: float(value) if known[name][0] == "FLOAT" else value for name, value in values.items()}


def _check(place: str, value: Any, kind: str, options: Mapping[str, Any]) -> None:
    """Raises EvaluationError where a widget of a kind cannot have a value."""
    if kind == "COMBO":
        if value not in options["options"]:
            raise EvaluationError(f"{place}: there is no '{shown(value)}'; use {', '.join(options['options'])}.")
        return
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        raise EvaluationError(f"{place}: '{shown(value)}' is not {_WORDS[kind]}; write one.")
    if "min" in options and not options["min"] <= value <= options["max"]:
        raise EvaluationError(f"{place}: {value} cannot be used; take {options['min']} to {options['max']}.")
