"""The plan of an evaluation: a YAML file, and what its words mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from evaluation.errors import EvaluationError
from evaluation.plan_file import Part, read_plan
from files.names import can_be_a_folder
from files.pictures import folder_name
from files.prompts import read_prompts
from rlg_sampler.schedules import schedule as schedules

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
Pixels = Annotated[int, Field(strict=True, ge=16, le=16384, multiple_of=8)]
Cfg = Annotated[float, Field(strict=True, ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]


def _absolute(path: Path, info: ValidationInfo) -> Path:
    if "\0" in str(path):
        raise ValueError("a path has no NUL in it")
    try:
        return info.context / path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder {path.parts[0]}") from None


AnyPath = Annotated[Path, AfterValidator(_absolute)]
"""Absolute; a relative one starts at the plan's folder."""

_TUNED = ("lora", "tuned_checkpoint", "tuned_diffusion_model")


class ModelFiles(Part):
    """A model as the host's folders name it: a checkpoint, or files of their own in place of it or of what it lacks."""

    checkpoint: Text | None = None
    diffusion_model: Text | None = None
    weight_dtype: Literal["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"] = "default"
    """Of the diffusion model, as in the host's UNETLoader."""
    text_encoders: Annotated[tuple[Text, ...], Field(max_length=4)] = ()
    type: Text = "stable_diffusion"
    """Of the text encoders, as in the host's CLIP loaders."""
    vae: Text | None = None

    def files(self) -> Iterator[tuple[str, str, str]]:
        """Of each file its place in the plan, the host's folder and its name there."""
        for place, folder in (("checkpoint", "checkpoints"), ("diffusion_model", "diffusion_models"), ("vae", "vae")):
            if name := getattr(self, place):
                yield place, folder, name
        for index, name in enumerate(self.text_encoders):
            yield f"text_encoders[{index}]", "text_encoders", name


class Pair(ModelFiles):
    """A base model and its tuned version, which is a LoRA, a checkpoint or a diffusion model."""

    lora: Text | None = None
    lora_strength: Number = 1.0
    tuned_checkpoint: Text | None = None
    tuned_diffusion_model: Text | None = None
    name: str = ""
    """Of its folder; the tuned model's name where there is none."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_the_tuned_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            tuned = str(next(filter(None, map(values.get, _TUNED)), ""))
            return {**values, "name": Path(tuned.replace("\\", "/")).name.removesuffix(".safetensors")}
        return values

    @model_validator(mode="after")
    def _one_of_each(self) -> Pair:
        if (self.checkpoint is None) == (self.diffusion_model is None):
            raise ValueError("give either checkpoint, or diffusion_model with text_encoders and vae")
        if sum(getattr(self, name) is not None for name in _TUNED) != 1:
            raise ValueError("give either lora or tuned_checkpoint, or tuned_diffusion_model")
        name = self.name
        if not can_be_a_folder(name) or len(name) > 100:
            raise ValueError(f"its name {name!r} cannot be that of a folder; give it another with name:")
        return self

    @property
    def base(self) -> str:
        return self.checkpoint or self.diffusion_model or ""

    @property
    def tuned(self) -> str:
        return self.lora or self.tuned_checkpoint or self.tuned_diffusion_model or ""

    def files(self) -> Iterator[tuple[str, str, str]]:
        """See `ModelFiles.files`; a LoRA has a loader of its own."""
        yield from super().files()
        if self.tuned_checkpoint:
            yield "tuned_checkpoint", "checkpoints", self.tuned_checkpoint
        if self.tuned_diffusion_model:
            yield "tuned_diffusion_model", "diffusion_models", self.tuned_diffusion_model


class PromptFile(Part):
    """As the inputs of RLG Load Prompts."""

    file: AnyPath
    column: str = "prompt"
    start: Count = 0
    count: Count = 0
    shuffle_seed: Seed = 0

    def read(self) -> list[str]:
        """Raises EvaluationError: the file does not hold them."""
        try:
            return read_prompts(self.file, self.column, self.start, self.count, self.shuffle_seed)
        except ValueError as error:
            raise EvaluationError(f"prompts: {error}") from None


class ModelFile(Part):
    """A reward or a measure of diversity by its name, and the file of its weights where the host has several."""

    name: Text
    file: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class InRange(Part):
    scale: Number
    start_percent: Number = 0.0
    end_percent: Number = 1.0
    outside: Number = 1.0


class CombinedGeneration(Part):
    switch_percent: Number
    scale: Number = 1.0


class Ramp(Part):
    start_scale: Number = 0.0
    end_scale: Number = 1.0
    curve: str = Field("linear", pattern="^(linear|cosine|power)$")
    power: Number = 2.0


class Keyframes(Part):
    keyframes: Text
    interpolation: str = Field("step", pattern="^(step|linear)$")


class ScheduleChoice(Part):
    """One of the schedule nodes, with its inputs."""

    range: InRange | None = None
    combined_generation: CombinedGeneration | None = None
    ramp: Ramp | None = None
    keyframes: Keyframes | None = None

    @model_validator(mode="after")
    def _one_that_can_be_used(self) -> ScheduleChoice:
        if sum(value is not None for value in dict(self).values()) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        self.schedule()
        return self

    def schedule(self) -> schedules.Schedule:
        ((name, inputs),) = ((name, inputs) for name, inputs in self if inputs is not None)
        make = schedules.in_range if name == "range" else getattr(schedules, name)
        return make(**dict(inputs))


@dataclass(frozen=True)
class Cell:
    """One of the things to compare: a scale or a schedule."""

    schedule: schedules.Schedule

    @property
    def scale(self) -> float | None:
        return self.schedule.constant_scale

    @property
    def schedule_text(self) -> str:
        return "" if self.scale is not None else str(self.schedule)

    @property
    def folder(self) -> str:
        return folder_name(self.scale, self.schedule_text)

    def __str__(self) -> str:
        return f"s = {self.scale:g}" if self.scale is not None else str(self.schedule)


@dataclass(frozen=True)
class Batch:
    """Prompts of one pair that are worked on together; what is lost at most when a worker dies."""

    pair: int
    first: int
    """Number of the first prompt."""
    prompts: tuple[str, ...]


class Plan(Part):
    """What to sample and to score."""

    output: AnyPath
    pairs: tuple[Pair, ...] = Field(min_length=1)
    prompts: PromptFile
    seeds: tuple[Seed, ...] = Field(min_length=1)
    scales: tuple[Number, ...] = ()
    schedules: tuple[ScheduleChoice, ...] = ()
    steps: Positive = 28
    cfg: Cfg = 4.5
    tuned_cfg: Annotated[Cfg | None, AfterValidator(lambda cfg: cfg or None)] = None
    """0 is the same as `cfg`, as on the nodes."""
    sampler: Text = "euler"
    scheduler: Text = "normal"
    width: Pixels = 512
    height: Pixels = 512
    negative: str = ""
    rewards: tuple[ModelFile, ...] = ()
    diversity: ModelFile = ModelFile(name="pixels")
    batch: Positive = 4
    """Prompts in a batch."""
    threads: Positive = 1
    """CPU threads of a worker. Part of the plan because the last bits of a sum depend on it."""

    @field_validator("scales")
    @classmethod
    def _usable_scales(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            schedules.constant(value)
        return values

    @model_validator(mode="after")
    def _each_once(self) -> Plan:
        if not self.cells:
            raise ValueError("scales: there are none, and no schedules; give what to compare, such as [0, 1, 2]")
        for what, names in (
            ("pairs", [pair.name.lower() for pair in self.pairs]),
            ("seeds", list(self.seeds)),
            ("scales and schedules", [str(cell) for cell in self.cells]),
            ("scales and schedules", [cell.folder.lower() for cell in self.cells]),
            ("rewards", [reward.name for reward in self.rewards]),
        ):
            if doubled := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{what}: {doubled[0]!s} is there twice; take one out")
        if "shards" in (pair.name.lower() for pair in self.pairs):
            raise ValueError("pairs: shards is the name of a folder of ours; give the pair another with name:")
        return self

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return (
            *(Cell(schedules.constant(scale)) for scale in self.scales),
            *(Cell(choice.schedule()) for choice in self.schedules),
        )

    def batches(self, pair: int, prompts: Sequence[str]) -> Iterator[Batch]:
        """All prompts, for the pair of this number."""
        for first in range(0, len(prompts), self.batch):
            yield Batch(pair, first, tuple(prompts[first : first + self.batch]))


def load_plan(file: Path) -> Plan:
    """As `read_plan`."""
    return read_plan(file, Plan)
