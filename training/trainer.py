"""A training run: iterations, the optimiser, the averaged LoRA, and the state that a run goes on from."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.samplers
import torch

from ..rlg_sampler.messages import model_name
from .checkpoint import State, keep_other, take_up
from .iteration import Learned, Report
from .lora_output import save_lora
from .methods.direct_align import DirectAlignLearner
from .methods.forward_process import ForwardLearner
from .methods.policy_gradient import PolicyLearner
from .methods.reward_gradient import LastStepsLearner
from .methods.settings import DirectAlign, ForwardProcess, Method, PolicyGradient, RewardGradient
from .policy.gradients import check_differentiable, training_mode
from .policy.host_model import HostModel, Run
from .policy.prompts import Prompts
from .policy.targets import attention_projections
from .policy.trainable_lora import Policy
from .progress import beyond
from .streams import noise, stream
from .task import Task
from .team import ALONE, Team

logger = logging.getLogger(__name__)

LARGEST_GRADIENT = 1.0
"""Gradients are scaled down to this norm, as Flow-GRPO, DiffusionNFT and B²-DiffuRL do; SRPO: 0.1, others none."""
WEIGHT_DECAY = 1e-4
_SECONDS_BETWEEN_CHECKPOINTS = 30.0
_TIMES_ITS_WRITING = 30.0
"""Checkpoints of large LoRAs, which take seconds, are made less often: at most about 3 % of the time goes there."""
_LEARNERS = {
    PolicyGradient: PolicyLearner,
    ForwardProcess: ForwardLearner,
    RewardGradient: LastStepsLearner,
    DirectAlign: DirectAlignLearner,
}


@dataclass(frozen=True)
class Settings:
    """How a LoRA is trained, whatever the method.

    Attributes:
        learning_rate: of AdamW.
        rank: of the LoRA; its alpha is twice that, as Flow-GRPO trains.
        seed: of all that is random.
        batch_size: pictures per call of the model.
        checkpointing: compute blocks twice, to keep less of them in memory; None = where all would not fit. What is
            learned is the same.
    """

    learning_rate: float = 3e-4
    rank: int = 32
    seed: int = 0
    batch_size: int = 4
    checkpointing: bool | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be trained with."""
        for name in ("learning_rate", "rank", "batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} trains nothing; use a value above 0.")


@dataclass(frozen=True)
class Iteration(Learned):
    """What an iteration saw, with its number (from 1) and how long it took."""

    number: int
    seconds: float


class Trainer:
    """Trains a LoRA; goes on where an earlier run with the same settings was.

    Args:
        task, method, settings: of the run.
        checkpoint: file for its state; None keeps none.
        team: workers that make the run together, with the same arguments; the first one keeps the file.

    Attributes:
        checkpoint: file for the state, or None.
        history: finished iterations, those of earlier runs too.
        started_anew: why an earlier run's state was not taken up, as a sentence; "" where there was none, or it was.
        memory: what a backward pass takes, as a sentence, once that was looked at; "" before.
        written: so many iterations are in the checkpoint that was last written.

    Raises:
        ValueError: a part does not fit the others, or the checkpoint cannot be read.
    """

    def __init__(
        self, task: Task, method: Method, settings: Settings, checkpoint: Path | None = None, team: Team = ALONE
    ) -> None:
        if method.groups < team.size:
            raise ValueError(
                f"groups: {method.groups} cannot be shared among {team.size} workers; raise it, or take fewer workers."
            )
        self.task, self.method, self.settings = task, method, settings
        self.history: list[Iteration] = []
        self.started_anew = self.memory = ""
        self.checkpoint, self.written, self._team = checkpoint, 0, team
        self._next_write = time.monotonic() + _SECONDS_BETWEEN_CHECKPOINTS
        self._digest = task.digest
        check_differentiable(task.model.model)
        device = task.model.load_device
        with training_mode():
            targets = attention_projections(task.model)
            self.policy = Policy(targets, settings.rank, 2.0 * settings.rank, settings.seed, device)
            self._parameters = self.policy.parameters
            self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
            self._optimizer = torch.optim.AdamW(
                self._parameters.values(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
            )
            sampling = task.model.get_model_object("model_sampling")
            sigmas = comfy.samplers.calculate_sigmas(sampling, method.scheduler, method.steps).clone()
        # A patch such as ModelSamplingSD3 changes the steps, one such as ModelSamplingDiscrete what is predicted.
        # Rounded, as GPUs and CPUs compute the steps.
        kinds = [kind.__name__ for kind in type(sampling).__mro__[1:]]
        about = " ".join([*kinds, *(f"{sigma:.4g}" for sigma in sigmas.tolist())])
        self._digest["sampling"] = hashlib.sha256(about.encode()).hexdigest()
        self._updates = 0
        self._host = HostModel(
            task.model, self.policy, task.prompts, method.cfg, sigmas, settings.checkpointing, method.through_negative
        )
        self._learner = _LEARNERS[type(method)](method, task, self._host, settings.batch_size, settings.seed, team)
        self._go_on()

    def iterate(self, until: int, report: Report = lambda done: None) -> Iterator[Iteration]:
        """Make the iterations that are missing to `until`, and yield each.

        An error or Cancel ends it with the state after the last whole iteration, which is also written.

        Args:
            until: number of iterations of the whole run.
            report: told the finished share of the present iteration, 0 … 1.
        """
        if self.checkpoint is not None and self._team.place == 0:
            keep_other(self.checkpoint, self.fingerprint)
        if too_many := beyond(self.history, until):
            logger.warning("RLG training: %s", too_many)
        try:
            if len(self.history) < until:
                self.write()  # a disk that is full is found before hours of work, not after
                self._fit()
                report(0.0)  # where memory runs out it does so before the next one
            while len(self.history) < until:
                entry = self._iteration(report)
                if time.monotonic() > self._next_write:
                    self.write()
                yield entry
        finally:
            self.write()

    def write(self) -> None:
        """Write the state, for a later run to go on from.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        if self.checkpoint is not None and self._team.place == 0:
            begun, history = time.monotonic(), [asdict(entry) for entry in self.history]
            State(self.fingerprint, len(history), self._tensors(), history).write(self.checkpoint)
            self.written = len(history)
            now = time.monotonic()
            self._next_write = now + max(_SECONDS_BETWEEN_CHECKPOINTS, _TIMES_ITS_WRITING * (now - begun))

    def save(self, folder: Path) -> Path:
        """Write the averaged LoRA with its recipe; see `lora_output.save_lora`."""
        return save_lora(self.policy, self._average, folder, self.task.model, self._recipe())

    def pictures(self, prompts: Prompts, seed: int, tuned: bool) -> torch.Tensor:
        """Pictures without noise on the way, as a preview: IMAGE, one per prompt.

        Args:
            prompts: what to show; the task's own or others.
            seed: of the noise that they start from, another for each.
            tuned: by the averaged LoRA; else by the base model.
        """
        shape = self.task.latent_shape

        def sampled(run: Run, number: int) -> torch.Tensor:
            return run.sampled(noise([stream(seed, "preview", number)], shape, run.device)).cpu()

        chosen = self.policy.with_values(self._average) if tuned else self.policy.disabled()
        host, size = self._host.on(prompts), torch.Size((1, *shape))
        with training_mode(), chosen:
            numbers = range(len(prompts.texts))
            latents = [host.run(n, size, lambda run, n=n: sampled(run, n)) for n in numbers]
            # Not within a run: the VAE may need the memory of the model, whose weights are stand-ins there.
            return torch.cat([self.task.decoded(one) for one in latents])

    def _fit(self) -> None:
        """Look what a backward pass will take, and say so."""
        predictions = self.method.gradient_steps if isinstance(self.method, RewardGradient) else 1
        rows = min(self.settings.batch_size, self.method.group_size)
        with training_mode():
            self.memory = self._host.fit(torch.Size((rows, *self.task.latent_shape)), predictions)
        if self.memory:
            logger.info("RLG training: %s", self.memory)

    def _iteration(self, report: Report) -> Iteration:
        # On the CPU, since a GPU has no room to spare meanwhile.
        before = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors().items()}
        start = time.perf_counter()
        number = len(self.history)
        with training_mode():
            try:
                learned = self._learner.iterate(number, self._step, report)
            except BaseException:
                self._restore(before)
                raise
            finally:
                self._optimizer.zero_grad()
        self.history.append(Iteration(**asdict(learned), number=number + 1, seconds=time.perf_counter() - start))
        return self.history[-1]

    def _step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), LARGEST_GRADIENT)
        if not norm.isfinite():
            raise ValueError(
                f"learning_rate: the gradient of iteration {len(self.history) + 1} is no number, and was not taken up; "
                "lower learning_rate, use another reward, or load the model in bf16."
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        # As the reference, an average over few updates in the beginning (its ema.py).
        decay = min((1 + self._updates) / (10 + self._updates), self.method.average_decay)
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter.detach(), 1.0 - decay)
        self._updates += 1
        return float(norm)

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"policy.{name}": parameter.detach() for name, parameter in self._parameters.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self._average.items()}
        for name, parameter in self._parameters.items():
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"adamw.{name}.{kind}": tensor for kind, tensor in state.items()}
        tensors |= {f"learner.{name}": tensor for name, tensor in self._learner.tensors().items()}
        return tensors | {"updates": torch.tensor(self._updates)}

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(tensors[f"policy.{name}"])
            self._average[name].copy_(tensors[f"average.{name}"])
            prefix = f"adamw.{name}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            # AdamW counts its steps on the CPU.
            moved = {kind: t.clone() if kind == "step" else t.to(parameter, copy=True) for kind, t in own.items()}
            self._optimizer.state.pop(parameter, None)
            if moved:
                self._optimizer.state[parameter] = moved
        learner = {n.removeprefix("learner."): t for n, t in tensors.items() if n.startswith("learner.")}
        self._learner.restore(learner)
        self._updates = int(tensors["updates"])

    def _go_on(self) -> None:
        path = self.checkpoint
        if path is None:
            return
        state, self.started_anew = self._team.from_first(lambda: take_up(path, self.fingerprint))
        if self.started_anew:
            logger.warning("RLG training: %s", self.started_anew)
        if state is None:
            return
        with training_mode():
            self._restore(dict(state.tensors))
        self.history = [Iteration(**entry) for entry in state.history]

    @property
    def fingerprint(self) -> dict[str, str]:
        """All that would make another run of it, as text; patches of attention are not seen."""
        task = self.task
        reward = {"reward": task.reward.name, "unit": task.reward.unit}  # the unit tells how rewards are combined
        of_task = {**reward, "width": task.width, "height": task.height}
        # Where memory runs out a run goes on with less: these two change no more of it than what is computed together.
        settings = {k: v for k, v in asdict(self.settings).items() if k not in ("checkpointing", "batch_size")}
        settings["alpha"] = None  # it was a setting once; without it the runs of then would start anew
        parts = {**of_task, **self._digest, **settings, "method": self.method.name, **asdict(self.method)}
        return {name: str(value) for name, value in parts.items()}

    def _recipe(self) -> dict[str, str]:
        """How the LoRA was made, for its file."""
        made = {"iterations": str(len(self.history)), "family": model_name(self.task.model), "torch": torch.__version__}
        made["batch_size"] = str(self.settings.batch_size)
        return {"reward_source": self.task.reward.source, **self.fingerprint, **made}
