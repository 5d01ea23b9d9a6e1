"""Models as reports, pages and terminal call, sort and colour them.

FedKIM is the method of the paper: its name stands for the recipes ``paper`` and, so marked, ``released`` alone. With
medfed's own recipe the model is the injected LLM, or medfed's. The name in ``scores.json`` is ``fedkim`` for all.
"""

from __future__ import annotations

from collections.abc import Iterable

from medfed.evaluation.controls import NEAREST, NO_DATA, REUSE, WORDS, is_control

MODELS = {
    "fedkim": "Injected LLM",
    "federated": "Federated-only",
    "local": "Local-only",
    "centralised": "Centralised",
    "heads": "Heads of the injected run",
    "before": "LLM before injection",
    "after": "LLM after injection",
    "reuse/nearest": "Nearest head reused",
    "reuse/mean": "Mean of the heads reused",
    "reuse/best": "Best head in hindsight",
    "count": "Count of abnormal values",
    "blind/other": "LLM, another patient's data",
    "blind/none": "LLM, no patient",
    "blind/type": "Most frequent answer by type",
    "words": "Findings weighed by the LLM",
    "words+equal": "Findings weighed, and their count",
    "words/equal": "Count of the findings that hold",
    "words/other": "Weights of another question",
    "words/nearest": "Finding nearest in meaning",
    "words/similar": "Similarity in place of an answer",
    "words/ceiling": "Weights fitted with labels (bound)",
    "lora": "LLM with one LoRA",
    "always-yes": "Always yes",
    "always-no": "Always no",
    "majority": "Majority answer",
    "constant-frequent": "Most frequent answer",
    "constant-empty": "No tumour anywhere",
    "constant-tie": "All films alike",
    "constant-best": "Best constant answer",
}
METHODS = {0: "FedPlug", 1: "FedPlug_L"}
"""The paper's names of its method with so many experts."""
FEDKIM, RELEASED = "FedKIM", "released code"
INJECTED, FEDERATED, BEST_CONSTANT = "fedkim", "federated", "constant-best"
"""Models that verdicts are about."""
HIDDEN = (REUSE, NO_DATA, f"{WORDS}/")
"""Controls that tables of one metric leave to the table of all metrics, but for the nearest head."""


def model_title(model: str) -> str:
    """Title of a model in a table."""
    if model.startswith(f"{WORDS}/") and model not in MODELS:
        return f"Findings weighed by {model.removeprefix(f'{WORDS}/')}"
    if is_single_head(model):
        return f"Head {model.removeprefix(REUSE)} reused"
    return MODELS.get(model, model.replace("-", " ").capitalize() if is_constant(model) else model)


def injected_title(recipe: object, num_experts: object) -> str:
    """Title of the injected LLM of a recipe: the paper's names for the paper's recipes alone."""
    if recipe not in ("paper", "released"):
        return MODELS[INJECTED]
    name = METHODS.get(num_experts, FEDKIM) if isinstance(num_experts, int) else FEDKIM
    return name if recipe == "paper" else f"{name} ({RELEASED})"


def is_constant(model: str) -> bool:
    """Whether a model gives every example the same answer by construction."""
    return model == "majority" or model.startswith(("always-", "constant-"))


def model_order(models: Iterable[str]) -> list[str]:
    """Sort models: the injected LLM, the federated-only model, others as they come, controls, constants last."""
    first, listed = {INJECTED: 0, FEDERATED: 1}, list(MODELS)
    return sorted(
        dict.fromkeys(models),
        key=lambda model: (
            is_constant(model),
            first.get(model, 3 if is_control(model) else 2),
            listed.index(model) if is_control(model) and model in MODELS else 0,
        ),
    )


def in_first_tables(model: str) -> bool:
    """Whether tables of one metric show the model; of the reused heads they show the nearest alone."""
    return model == NEAREST or not model.startswith(HIDDEN)


def is_single_head(model: str) -> bool:
    """Whether the model is one trained head that answers another task's question, by its task's name."""
    return model.startswith(REUSE) and model not in MODELS


def model_style(model: str) -> str:
    """CSS class that colours a model everywhere."""
    if is_constant(model):
        return "constant"
    return model if model in (INJECTED, FEDERATED) else "other"
