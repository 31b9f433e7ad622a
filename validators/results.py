# SPDX-License-Identifier: Apache-2.0
"""What a build measured: the nouns of a report, and their JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prunec.validators.gates import Gate
from prunec.validators.measurements import (
    FootprintResult,
    ParityResult,
    PerplexityResult,
    SpeedResult,
    TaskResult,
)

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model as its files hold them: counts of parameters, bytes of the weight files,
    bytes that one token adds to the KV cache."""

    parameters: int
    prunable_parameters: int
    bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class CompletionResult:
    """What each model makes of a prompt; both texts begin with it."""

    prompt: str
    dense: str
    pruned: str


@dataclass(frozen=True)
class StepCost:
    """One step of the build. `reused`: its result came from the store."""

    name: str
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Cost:
    """What the build took. One token-forward is one token through the whole model."""

    token_forwards: int
    seconds: float
    peak_rss_bytes: int
    steps: tuple[StepCost, ...] = ()


@dataclass(frozen=True)
class SearchPoint:
    """The best divergence (nats per token) after a generation, and the token-forwards spent."""

    round: int
    generation: int
    token_forwards: int
    divergence: float


@dataclass(frozen=True)
class Divergence:
    """Divergence from the dense model in nats per token: where the search began and ended."""

    uniform: float
    winner: float


@dataclass(frozen=True)
class SurrogateResult:
    """What a round's surrogate, which predicts divergences, was worth.

    rank_correlation: of its predictions with what was measured after them, 1 where both put the
    layouts in the same order; None where too little was measured. probes: the layouts that were
    measured to calibrate it. fell_back: why the round went on without it; None if it did not.
    """

    round: int
    rank_correlation: float | None
    probes: int
    fell_back: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """How a search went; `surrogates` are of the rounds that had one."""

    divergence: Divergence
    history: tuple[SearchPoint, ...] = ()
    surrogates: tuple[SurrogateResult, ...] = ()


@dataclass(frozen=True)
class TrialResult:
    """Settings that were tried.

    value: the objective, None where there is none; state: `complete`, `pruned` (stopped early),
    `failed` or `repeated` (settings that an earlier trial had); settings: by their names in the
    space, weights as `metric.NAME` and `mixture.PART`, in proportion to each other
    """

    number: int
    value: float | None
    state: str
    seconds: float
    token_forwards: int
    settings: Mapping[str, str | float]


@dataclass(frozen=True)
class FinalistResult:
    """A trial that was pruned in full, layer by layer. value: the objective then."""

    number: int
    value: float


@dataclass(frozen=True)
class TuningResult:
    """How the settings of a method were found.

    objective: `divergence` (nats per token) or `perplexity`; best: the number of the trial that
    was taken; importances: shares that settings have in what tells good trials from others, where
    that could be estimated; collected: token-forwards that the statistics took which all trials
    share; startup: how many of the first trials came before the sampler learned from any;
    finalists: the best trials as they were worth once pruned in full, of which the best was taken;
    empty where none were
    """

    objective: str
    sampler: str
    trials: tuple[TrialResult, ...]
    best: int
    importances: Mapping[str, float] = field(default_factory=dict)
    collected: int = 0
    startup: int = 0
    finalists: tuple[FinalistResult, ...] = ()


@dataclass(frozen=True)
class RecoveryPoint:
    """Loss on the held-out text after so many tokens of training, and of training since the last
    look (None before any)."""

    tokens: int
    held_out: float
    training: float | None


@dataclass(frozen=True)
class RecoveryResult:
    """How the pruned model was trained back.

    kind: `lora` or `blockwise`; loss: what the held-out loss is, in words; before, after: that
    loss, of the weights that went in and of those that training made; kept: whether these were
    taken, otherwise the weights are what they were; stopped: why training ended before its budget,
    None if it did not; trained: parameters that were trained, at most at once; merge_error: the
    largest difference of logits that merging made, None where nothing is merged
    """

    kind: str
    loss: str
    tokens: int
    before: float
    after: float
    kept: bool
    trained: int
    points: tuple[RecoveryPoint, ...] = ()
    stopped: str | None = None
    merge_error: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that report.json and report.md say.

    `method` is `given` where nothing was made, only judged; `seed` None where nothing was drawn.
    `layers` and `dense_layers` hold one entry a layer: `query_heads`, `kv_heads`, `head_dim`,
    `ffn` (counts) and `attention`, `mlp` (whether there is one). `artefacts` maps a kind of
    export to its path relative to the build's folder. `remote_code`: the Hugging Face export
    brings its own modeling file. `perplexity` is on the text of `validate.perplexity`, `elsewhere`
    on those of `validate.elsewhere`, by name. `problems`: files of the artefacts that disagree with
    each other. `hardware`: the machine that measured. `command`: what
    makes this report again.
    """

    prunec_version: str
    recipe: str
    method: str
    seed: int | None
    dense: ModelSize
    pruned: ModelSize
    dense_layers: Sequence[Mapping[str, Any]]
    layers: Sequence[Mapping[str, Any]]
    cost: Cost
    gates: tuple[Gate, ...] = ()
    perplexity: PerplexityResult | None = None
    elsewhere: Mapping[str, PerplexityResult] = field(default_factory=dict)
    tasks: tuple[TaskResult, ...] = ()
    speeds: tuple[SpeedResult, ...] = ()
    footprints: tuple[FootprintResult, ...] = ()
    parities: tuple[ParityResult, ...] = ()
    problems: tuple[str, ...] = ()
    completion: CompletionResult | None = None
    search: SearchResult | None = None
    tuning: TuningResult | None = None
    recovery: RecoveryResult | None = None
    remote_code: bool = False
    artefacts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    recipe_text: str = ""
    command: str = ""

    @property
    def sparsity(self) -> float:
        """Share of the prunable parameters that is gone."""
        return 1 - self.pruned.prunable_parameters / self.dense.prunable_parameters

    @property
    def counted(self) -> bool:
        """Whether the pruned model's projections could be told from each other: those of a
        quantised checkpoint cannot."""
        return bool(self.layers) or self.pruned.prunable_parameters > 0

    @property
    def passed(self) -> bool:
        """Whether every gate passed; true without gates."""
        return all(gate.passed for gate in self.gates)

    def as_dict(self) -> dict[str, Any]:
        """The content of report.json: plain data, finite numbers or null."""
        content = {"schema_version": SCHEMA_VERSION, "passed": self.passed} | asdict(self)
        content["pruned"]["sparsity"] = self.sparsity
        plain: dict[str, Any] = finite(content)
        return plain


def finite(value: Any) -> Any:
    """Plain data with null for NaN and infinities, which JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
