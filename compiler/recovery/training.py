# SPDX-License-Identifier: Apache-2.0
"""A short training loop: AdamW, warm-up and cosine, looks at held-out text, resumable at a step.

Everything random is seeded by where the training stands, so that one that was stopped and goes on
ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from prunec.compiler.recovery.modes import Portions, precision, seeded, training_mode
from prunec.compiler.recovery.objective import Objective, Text
from prunec.compiler.recovery.schedule import Schedule
from prunec.validators.results import RecoveryPoint

#: Gradients are scaled down to this norm where theirs is larger.
_CLIP = 1.0

#: The state is saved at every look at held-out text, and when so much time has gone since.
SECONDS_BETWEEN_SAVES = 60.0


@dataclass
class Standing:
    """Where a training stands. since: sum and number of batch losses since the last look; best:
    the lowest held-out loss; waited: looks since it; token_forwards: spent so far."""

    step: int = 0
    tokens: int = 0
    points: list[RecoveryPoint] = field(default_factory=list)
    best: float = math.inf
    waited: int = 0
    since: tuple[float, int] = (0.0, 0)
    token_forwards: int = 0
    stopped: str | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Standing:
        points = [RecoveryPoint(**point) for point in plain["points"]]
        return cls(**{**plain, "points": points, "since": tuple(plain["since"])})


class TrainingMemory(Protocol):
    """Where the state of a training is kept; only the latest is of use."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None: ...

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None: ...


class Training:
    """A model and those of its parameters that are trained; they end as they were at their best."""

    def __init__(
        self,
        model: Any,
        parameters: Mapping[str, Tensor],
        objective: Objective,
        schedule: Schedule,
        portions: Portions,
        *,
        autocast: bool = False,
        passes: int = 3,
    ) -> None:
        """portions: how many windows go through the model together; autocast: whether to compute in
        bfloat16; passes: token-forwards that a token takes in training"""
        self.model = model
        self.parameters = dict(parameters)
        self.objective = objective
        self.schedule = schedule
        self.portions = portions
        self.passes = passes
        self._autocast = autocast
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
        )
        self._best = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}

    def run(
        self,
        text: Text,
        held_out: Text,
        memory: TrainingMemory,
        on_tokens: Callable[[int, int, str], None] = lambda done, of, note: None,
    ) -> Standing:
        """Train on `text` from where `memory` stands, until the schedule ends or `held_out` has
        stopped to gain. on_tokens: told of tokens done, tokens in all, the held-out loss."""
        windows, length = text.ids.shape
        steps = self.schedule.steps(windows, length)
        looks = self.schedule.looks_after(steps)
        standing = self._resumed(memory)
        if not standing.points:
            self._look(standing, held_out)
            self._save(memory, standing)
        saved = time.monotonic()
        while standing.step < steps and standing.stopped is None:
            batch = self.schedule.batch(standing.step, windows, length)
            for group in self._optimizer.param_groups:
                group["lr"] = self.schedule.rate(standing.step, steps)
            loss = self._step(text, batch, standing.step)
            standing.step += 1
            standing.tokens += len(batch) * length
            standing.token_forwards += self.passes * len(batch) * length
            standing.since = (standing.since[0] + loss, standing.since[1] + 1)
            if not math.isfinite(loss):
                standing.stopped = "the training loss was no finite number"
            elif standing.step in looks:
                self._look(standing, held_out)
            if standing.step in looks or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                self._save(memory, standing)
                saved = time.monotonic()
            of = self.schedule.epochs * windows * length
            on_tokens(standing.tokens, of, f"tokens, held-out loss {standing.best:.4f}")
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(self._best[name])
        return standing

    def _step(self, text: Text, batch: list[int], step: int) -> float:
        """One optimiser step; the batch's mean loss."""

        def backward() -> float:
            self._optimizer.zero_grad(set_to_none=True)
            total = 0.0
            with training_mode(self.model), seeded(self.model.device, (self.schedule.seed, step)):
                for windows in self.portions.of(batch):
                    with self._precision():
                        loss = self.objective(self.model, text, windows).sum() / len(batch)
                    loss.backward()
                    total += float(loss.detach())
            return total

        loss = self.portions.fitting(backward)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), _CLIP)
        if not torch.isfinite(norm):
            return math.nan
        self._optimizer.step()
        return loss

    def _look(self, standing: Standing, held_out: Text) -> None:
        loss = self.held_out_loss(held_out)
        standing.token_forwards += held_out.ids.numel()
        spent, number = standing.since
        training = spent / number if number else None
        standing.points.append(RecoveryPoint(standing.tokens, loss, training))
        standing.since, standing.waited = (0.0, 0), standing.waited + 1
        if loss < standing.best:
            standing.best, standing.waited = loss, 0
            self._best = {n: tensor.detach().clone() for n, tensor in self.parameters.items()}
        elif not math.isfinite(loss):
            standing.stopped = "the held-out loss was no finite number"
        elif standing.waited >= self.schedule.patience:
            looks = f"{standing.waited} looks" if standing.waited > 1 else "a look"
            standing.stopped = f"no gain in {looks} at held-out text"

    def held_out_loss(self, text: Text) -> float:
        """Mean loss over the windows of a text."""
        return mean_loss(self.model, self.objective, text, self.portions, autocast=self._autocast)

    def _precision(self) -> AbstractContextManager[Any]:
        return precision(self.model.device, autocast=self._autocast)

    def _save(self, memory: TrainingMemory, standing: Standing) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"{name}/now"], tensors[f"{name}/best"] = parameter, self._best[name]
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = torch.as_tensor(value)
        memory.save(standing.step, tensors, asdict(standing))

    def _resumed(self, memory: TrainingMemory) -> Standing:
        if (found := memory.load()) is None:
            return Standing()
        tensors, facts = found
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            parameter = self.parameters[name]
            if part == "now":
                with torch.no_grad():
                    parameter.copy_(tensor)
            elif part == "best":
                self._best[name] = tensor.to(parameter.device)
            else:  # AdamW counts its steps on the CPU
                there = tensor if part == "step" else tensor.to(parameter.device)
                self._optimizer.state[parameter][part] = there
        return Standing.from_plain(facts)


@torch.no_grad()
def mean_loss(
    model: Any, objective: Objective, text: Text, portions: Portions, *, autocast: bool
) -> float:
    """Mean loss over the windows of a text, in evaluation mode."""
    model.eval()
    windows = list(range(len(text.ids)))

    def judge() -> float:
        with precision(model.device, autocast=autocast):
            losses = [objective(model, text, some).double().sum() for some in portions.of(windows)]
        return float(torch.stack(losses).sum())

    return portions.fitting(judge) / len(windows)
