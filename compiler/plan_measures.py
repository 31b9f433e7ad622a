# SPDX-License-Identifier: Apache-2.0
"""What a plan measures on artefacts: those that it writes, or those that are given.

`artefacts` names, for every kind of artefact, the step whose result it is. Models are measured in
steps of their own, so that builds of one dense model share what was measured of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunec import recipes
from prunec.compiler.calibration.sources import file_identity
from prunec.compiler.diagnostics import RecipeProblemError
from prunec.compiler.estimates import Windows
from prunec.compiler.estimates_artefact import answers, elsewhere, graph, measurement
from prunec.compiler.estimates_search import distribution_bytes
from prunec.compiler.model.census import listed, unused_tensors
from prunec.compiler.model.chat_template import chat_template_problem
from prunec.compiler.model.layout import dense_layout
from prunec.compiler.plan import Step, digest
from prunec.compiler.plan_builder import PlanBuilder
from prunec.compiler.plan_tokens import evaluated
from prunec.compiler.recipe import Validation
from prunec.exporters import exporter_for

#: Most likely tokens of the dense model that are kept apart when distributions are compared.
TOP_K = 128

#: What the dense model is written as to be compared in a runtime that cannot open its checkpoint.
DENSE_ONNX = "dense-onnx"


def opens(made: Step) -> bool:
    """Whether transformers opens the artefact that a step writes, or that was given to it."""
    if made.kind == "artefact":
        return bool(made.params["opens_in_transformers"])
    return exporter_for(made.params).opens_in_transformers


def add_measurements(
    steps: PlanBuilder, validation: Validation, artefacts: Mapping[str, str], kept: int
) -> None:
    """Steps for everything that `validation` asks for. RecipeProblemError for what cannot be.

    kept: about as many bytes as an artefact's weights have
    """
    _check_vllm_opens(steps, validation)
    _add_texts(steps, validation, artefacts, kept)
    _add_parity(steps, validation, artefacts, kept)
    _add_tasks(steps, validation, artefacts, kept)
    if "onnx" in artefacts and (validation.size or _runs(validation, "onnx")):
        _add_dense_onnx(steps, artefacts)
    _add_speed(steps, validation, artefacts, kept)
    if validation.size:
        inputs = dict(artefacts)
        if "onnx" in artefacts:
            inputs[DENSE_ONNX] = DENSE_ONNX
        steps.add(
            "footprint",
            "footprint",
            "bytes on disk and in memory",
            steps.model,
            inputs,
            # In processes of their own, one after the other; the dense model is the larger one.
            elsewhere(steps.sizes, steps.sizes.dense_bytes),
        )


def _check_vllm_opens(steps: PlanBuilder, validation: Validation) -> None:
    """RecipeProblemError where vLLM is to open a dense checkpoint with tensors that it refuses and
    transformers leaves out."""
    odd = [name for name in unused_tensors(steps.facts) if "rotary_emb." not in name]
    asked: dict[str, Sequence[str]] = {
        "validate.speed.runtimes": validation.speed.runtimes if validation.speed else [],
        "validate.tasks.backends": validation.tasks.backends if validation.tasks else [],
    }
    for key, runtimes in asked.items():
        if odd and "vllm" in runtimes:
            raise RecipeProblemError(
                key,
                f"{key} has vllm, which does not open the dense model, since its files hold "
                f"{listed(odd)}",
                hint="load the model with transformers, save it elsewhere and give that folder",
            )


def _add_texts(
    steps: PlanBuilder, validation: Validation, artefacts: Mapping[str, str], kept: int
) -> None:
    texts = evaluated(validation)
    if not texts and not validation.completion:
        return
    said = validation.completion.model_dump() if validation.completion else None
    params = steps.model | {"completion": said, "top_k": TOP_K}
    found = [steps.text(name) for name in texts]
    length = max((text.length for text in found), default=1)
    tokens = sum(text.tokens for text in found)
    read = Windows(tokens // length, length)  # all of them, as if windows were alike
    top = min(TOP_K, steps.facts.vocab_size)
    inputs = {name: name for name in texts}
    steps.add(
        "measure-dense",
        "measure",
        "judge the model as it was",
        params,
        inputs,
        measurement(
            steps.sizes,
            read,
            weights=steps.sizes.dense_bytes,
            reference_bytes=2 * distribution_bytes(tokens, top),
            disk_bytes=distribution_bytes(tokens, top),
        ),
    )
    steps.add(
        "measure-pruned",
        "measure",
        "judge the artefact, opened from disk",
        params,
        inputs | {"artefact": _opened(steps, artefacts), "dense": "measure-dense"},
        measurement(
            steps.sizes,
            read,
            weights=kept,
            reference_bytes=distribution_bytes(tokens, top),
        ),
    )


def _add_parity(
    steps: PlanBuilder, validation: Validation, artefacts: Mapping[str, str], kept: int
) -> None:
    if validation.parity is None:
        return
    steps.add(
        "parity",
        "parity",
        "whether every artefact says in its runtime what the model says",
        steps.model | validation.parity.model_dump(),
        {"tokens": "evaluation-tokens", **artefacts},
        answers(steps.sizes, kept, in_onnx="onnx" in artefacts),
    )


def _add_tasks(
    steps: PlanBuilder, validation: Validation, artefacts: Mapping[str, str], kept: int
) -> None:
    if (tasks := validation.tasks) is None:
        return
    if tasks.chat_template and steps.folder:
        problem = chat_template_problem(steps.folder, steps.facts.vocab_size)
        if problem:
            raise RecipeProblemError(
                "validate.tasks.chat_template",
                f"validate.tasks.chat_template is true, and the tokenizer in {steps.folder} "
                f"{problem[0]}",
                hint=problem[1],
            )
    folders = [recipes.folder() / "tasks", *tasks.include]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    settings: dict[str, Any] = steps.model | {
        "names": tasks.names,
        "metrics": tasks.metrics,
        # What lies in the folders, not where they lie.
        "files": digest(
            [[p.name, file_identity(p)] for p in files if p.suffix in (".yaml", ".py", ".jsonl")]
        ),
        "few_shot": tasks.few_shot,
        "limit": tasks.limit,
        "seed": tasks.seed,
        "chat_template": tasks.chat_template,
        "batch_size": tasks.batch_size,
        "max_length": tasks.max_length,
    }
    for backend in dict.fromkeys(tasks.backends):
        made = artefacts["vllm"] if backend == "vllm" else _opened(steps, artefacts)
        split = _split(steps, made) if backend == "vllm" else {}
        ranks = split.get("tensor_parallel", 1)
        params = settings | {"backend": backend} | split
        why = f"answers to {len(tasks.names)} of lm-eval's tasks, by {backend}"
        steps.add(
            f"tasks-dense-{backend}",
            "tasks",
            f"the dense model's {why}",
            params,
            {},
            elsewhere(steps.sizes, steps.sizes.dense_bytes, ranks=ranks),
        )
        steps.add(
            f"tasks-pruned-{backend}",
            "tasks",
            f"the artefact's {why}",
            params,
            {"artefact": made},
            elsewhere(steps.sizes, kept, ranks=ranks),
        )


def _add_dense_onnx(steps: PlanBuilder, artefacts: Mapping[str, str]) -> None:
    written = next(s for s in steps.steps if s.name == artefacts["onnx"])
    precision = written.params.get("precision", "float32")
    steps.add(
        DENSE_ONNX,
        "dense-export",
        "write the dense model as onnx, to compare with",
        steps.model | {"kind": "onnx", "precision": precision},
        {},
        graph(steps.sizes, dense_layout(steps.facts), precision),
    )


def _add_speed(
    steps: PlanBuilder, validation: Validation, artefacts: Mapping[str, str], kept: int
) -> None:
    if (speed := validation.speed) is None:
        return
    settings = speed.model_dump(exclude={"runtimes", "min_speedup", "min_tokens_per_second"})
    for runtime in dict.fromkeys(speed.runtimes):
        inputs = {"artefact": artefacts[runtime]}
        if runtime == "onnx":
            inputs["dense"] = DENSE_ONNX
        split = _split(steps, artefacts[runtime]) if runtime == "vllm" else {}
        steps.add(
            f"speed-{runtime}",
            "speed",
            f"both models in {runtime}, taking turns",
            steps.model | settings | {"runtime": runtime} | split,
            inputs,
            elsewhere(
                steps.sizes, steps.sizes.dense_bytes, kept, ranks=split.get("tensor_parallel", 1)
            ),
        )


def _split(steps: PlanBuilder, name: str) -> dict[str, int]:
    """Over how many GPUs vLLM splits the artefact of a step, and the dense model beside it."""
    made = next(step for step in steps.steps if step.name == name)
    ranks = int(made.params.get("tensor_parallel", 1))
    return {"tensor_parallel": ranks} if ranks > 1 else {}


def _runs(validation: Validation, runtime: str) -> bool:
    return validation.speed is not None and runtime in validation.speed.runtimes


def _opened(steps: PlanBuilder, artefacts: Mapping[str, str]) -> str:
    """The step of the first artefact that transformers opens."""
    made = [step for step in steps.steps if step.name in artefacts.values()]
    if found := next((step.name for step in made if opens(step)), None):
        return found
    raise RecipeProblemError(
        "validate",
        "validate measures what transformers can open, and none of the exports is such",
        hint="add {kind: hf} to export; an ONNX graph is judged with the checkpoint beside it",
    )
