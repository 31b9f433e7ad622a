# SPDX-License-Identifier: Apache-2.0
"""What the validators' tests share: a tiny model, for reading and for damaging, and reports."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunec.validators.gates import Gate, judge, judge_exact, judge_parity
from prunec.validators.measurements import (
    Estimate,
    FootprintResult,
    ParityResult,
    PerplexityResult,
    SpeedResult,
    TaskResult,
)
from prunec.validators.results import (
    CompletionResult,
    Cost,
    Divergence,
    ModelSize,
    RecoveryPoint,
    RecoveryResult,
    Report,
    SearchPoint,
    SearchResult,
    StepCost,
    TrialResult,
    TuningResult,
)


@pytest.fixture
def saved_llama(tiny_llama: Callable[..., Path]) -> Path:
    """A model folder that tests share, as transformers saved it. Tests that write take `llama`."""
    return tiny_llama(layers=2, hidden=32, head_dim=8, ffn=48, tied=True)


@pytest.fixture
def llama(saved_llama: Path, tmp_path: Path) -> Path:
    """A copy of the model folder."""
    return shutil.copytree(saved_llama, tmp_path / "llama")


@pytest.fixture(scope="session")
def report() -> Report:
    """A report of a search whose only gate passed."""
    found = PerplexityResult(
        11.5,
        27.715,
        Estimate(27.715, 27.0, 28.4, 255, "windows"),
        Estimate(2.41, 2.35, 2.47, 255, "windows"),
        Estimate(0.8213, 0.8107, 0.8322, 255, "windows"),
        65_280,
        "python_stdlib",
    )
    steps = (StepCost("gram", 12.0, True), StepCost("search", 240.3, False))
    return Report(
        prunec_version="0.1.0",
        recipe="quickstart",
        method="tyr",
        seed=0,
        dense=ModelSize(6_951_168, 5_898_240, 13_909_512, 4096),
        pruned=ModelSize(4_002_048, 2_949_120, 8_009_864, 1536),
        dense_layers=[layer(8, 4, 704)] * 2,
        layers=[layer(4, 2, 352), layer(0, 0, 48)],
        cost=Cost(2_000_123, 252.3, 1_500_000_000, steps),
        gates=(strict("perplexity.max_ratio", "perplexity ratio", found.ratio, 3.0),),
        perplexity=found,
        completion=CompletionResult("def f(", "def f(x):\n    pass", "def f(``` |"),
        search=SearchResult(
            Divergence(0.9, 0.6), (SearchPoint(0, 1, 1000, 0.8), SearchPoint(0, 2, 2000, 0.6))
        ),
        remote_code=True,
        artefacts={"hf": "hf"},
        versions={"python": "3.11.9", "torch": "2.13.0"},
    )


@pytest.fixture(scope="session")
def tuning() -> TuningResult:
    """Six trials, of each state one at least; the fifth is the best."""

    def trial(number: int, value: float | None, state: str, **other: str | float) -> TrialResult:
        settings = {"metric.obs": 0.75, "metric.wanda": 0.25} | other
        took = (0.0, 0) if state == "repeated" else (4.0 + number, 16_384)
        return TrialResult(number, value, state, *took, settings)

    trials = (
        trial(0, 0.9, "complete", exponent=1.0),
        trial(1, 0.7, "complete", exponent=2.0),
        trial(2, None, "failed", exponent=0.5),
        trial(3, 0.8, "pruned", exponent=1.0),
        trial(4, 0.5, "complete", exponent=0.5, aggregation="<max>", quantile="1 of 3"),
        trial(5, 0.7, "repeated", exponent=2.0),
    )
    importances = {"exponent": 0.2, "metric.obs": 0.6, "metric.wanda": 0.0}
    return TuningResult("divergence", "tpe", trials, 4, importances, 393_216, 2)


@pytest.fixture(scope="session")
def recovery() -> RecoveryResult:
    """A recovery of use, that stopped early."""
    return RecoveryResult(
        kind="lora",
        loss="divergence from the dense model, nats per token",
        tokens=24_576,
        before=0.6,
        after=0.4,
        kept=True,
        trained=73_728,
        points=(
            RecoveryPoint(0, 0.6, None),
            RecoveryPoint(8_192, 0.45, 0.52),
            RecoveryPoint(16_384, 0.4, 0.41),
            RecoveryPoint(24_576, 0.42, 0.36),
        ),
        stopped="1 look without a gain",
        merge_error=2.4e-06,
    )


@pytest.fixture(scope="session")
def full_report(report: Report, tuning: TuningResult, recovery: RecoveryResult) -> Report:
    """A report that has something in every section, of each verdict one, and hostile texts."""
    unknown = Estimate.unknown("items")
    nan = math.nan
    home = report.perplexity
    assert home
    prose = PerplexityResult(
        310.2,
        884.07,
        Estimate(884.07, 850.0, 920.0, 64, "windows"),
        Estimate(2.85, 2.61, 3.11, 64, "windows"),
        Estimate(1.021, 0.95, 1.09, 64, "windows"),
        16_320,
        "a file",
    )
    names = TaskResult(
        "python_names",
        "hf",
        "acc",
        300,
        0.55,
        0.27,
        Estimate(-0.28, -0.34, -0.22, 300, "items"),
        Estimate(0.491, 0.38, 0.6, 300, "items"),
        Estimate(0.27, 0.22, 0.32, 300, "items"),
        0.28,
    )
    broken = TaskResult(
        "broken", "hf", "acc", 0, nan, nan, unknown, unknown, unknown, error="it <raised>"
    )
    decode = SpeedResult(
        "hf",
        "decode",
        1,
        128,
        64,
        91.4,
        131.7,
        0.0109,
        0.0076,
        Estimate(131.7, 130.0, 133.0, 9, "turns", 0.99609375),
        Estimate(1.44, 1.39, 1.49, 9, "pairs", 0.99609375),
    )
    absent = SpeedResult(
        "vllm", "prefill", 8, 128, 64, nan, nan, nan, nan, unknown, unknown, "no engine"
    )
    parity = ParityResult("onnx", 4.4e-05, 1e-3, 96, 96)
    return replace(
        report,
        recipe="quick<script>alert(1)</script>",
        gates=(
            judge_exact("size.hf.max_bytes", "bytes of files", 8_009_864, 9_000_000, "<="),
            strict("elsewhere.prose.max_ratio", "perplexity ratio on prose", prose.ratio, 3.0),
            strict("perplexity.max_ratio", "perplexity ratio", home.ratio, 2.0),
            judge_parity(parity),
        ),
        elsewhere={"prose": prose},
        tasks=(names, broken),
        speeds=(decode, absent),
        footprints=(FootprintResult("hf", 8_800_000, 14_600_000, 61_000_000, None),),
        parities=(parity, ParityResult("vllm", nan, 1e-3, 0, 0, "vLLM is not installed")),
        completion=CompletionResult(
            "def f(", "def f(x):\n    pass", "def f(</pre><script>alert(2)"
        ),
        tuning=tuning,
        recovery=recovery,
        hardware={"cpu": "a CPU", "cores": "2"},
        recipe_text="model:\n  source: pytiny # <script>alert(3)</script>\n" + "# long " * 40,
        command="prunec build quickstart.yaml",
    )


def strict(name: str, what: str, estimate: Estimate, limit: float) -> Gate:
    return judge(name, what, estimate, limit, "<=", inconclusive_passes=False)


def layer(query_heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
    shape = {"query_heads": query_heads, "kv_heads": kv_heads, "head_dim": 32, "ffn": ffn}
    return shape | {"attention": kv_heads > 0, "mlp": ffn > 0}


#: What a file, a task, a recipe or a model may call itself.
HOSTILE = (
    "<script>document.title = 'run'</script>[key]|`a`$\\frac{1}$ _x_ *y* ~z~ \x1b[31m\n"
    "::error::%0A&lt;\u202e<img src=x onerror=\"document.title = 'run'\">{{7*7}}'"
)


@pytest.fixture(scope="session")
def hostile_report(full_report: Report) -> Report:
    """A report in which everybody's text is hostile: names, sources, errors, completions."""
    report, home = full_report, full_report.perplexity
    assert home and report.tuning and report.recovery and report.search
    return replace(
        report,
        recipe=HOSTILE,
        method="tyr",
        gates=(
            strict(f"elsewhere.{HOSTILE}.max_ratio", f"perplexity on {HOSTILE}", home.ratio, 1.0),
            *report.gates,
        ),
        perplexity=replace(home, source=f"text ({HOSTILE})", undiverged=HOSTILE),
        elsewhere={HOSTILE: replace(home, source=HOSTILE), f"{HOSTILE} 2": home},
        tasks=tuple(replace(t, task=f"{HOSTILE}{t.task}", backend=HOSTILE) for t in report.tasks),
        speeds=tuple(
            replace(found, runtime=HOSTILE, error=found.error and HOSTILE)
            for found in report.speeds
        ),
        footprints=tuple(replace(f, artefact=HOSTILE, note=HOSTILE) for f in report.footprints),
        parities=tuple(
            replace(p, artefact=HOSTILE, error=p.error and HOSTILE) for p in report.parities
        ),
        problems=(HOSTILE,),
        completion=CompletionResult(HOSTILE, f"{HOSTILE} a", f"{HOSTILE} ```\n## b"),
        tuning=replace(
            report.tuning,
            trials=tuple(
                replace(trial, settings={**trial.settings, HOSTILE: HOSTILE})
                for trial in report.tuning.trials
            ),
            importances={**report.tuning.importances, HOSTILE: 0.5},
        ),
        recovery=replace(report.recovery, loss=HOSTILE, stopped=HOSTILE),
        artefacts={"hf": HOSTILE, HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        hardware={"cpu": HOSTILE, HOSTILE: HOSTILE},
        recipe_text=f"# {HOSTILE}\n## Measured\n```",
        command=f"prunec build {HOSTILE}",
    )
