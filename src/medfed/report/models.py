"""Models as reports, pages and terminal call, sort and colour them."""

from __future__ import annotations

from collections.abc import Iterable

MODELS = {
    "fedkim": "Injected LLM",
    "federated": "Federated-only",
    "local": "Local-only",
    "centralised": "Centralised",
    "heads": "Heads of the injected run",
    "before": "LLM before injection",
    "after": "LLM after injection",
    "always-yes": "Always yes",
    "always-no": "Always no",
    "majority": "Majority answer",
    "constant-frequent": "Most frequent answer",
    "constant-empty": "No tumour anywhere",
    "constant-tie": "All films alike",
    "constant-best": "Best constant answer",
}
INJECTED, FEDERATED, BEST_CONSTANT = "fedkim", "federated", "constant-best"
"""Models that verdicts are about."""


def model_title(model: str) -> str:
    """Title of a model in a table."""
    return MODELS.get(model, model.replace("-", " ").capitalize() if is_constant(model) else model)


def is_constant(model: str) -> bool:
    """Whether a model gives every example the same answer by construction."""
    return model == "majority" or model.startswith(("always-", "constant-"))


def model_order(models: Iterable[str]) -> list[str]:
    """Sort models: the injected LLM, the federated-only model, others as they come, constants last."""
    first = {INJECTED: 0, FEDERATED: 1}
    return sorted(dict.fromkeys(models), key=lambda model: (is_constant(model), first.get(model, 2)))


def model_style(model: str) -> str:
    """CSS class that colours a model everywhere."""
    if is_constant(model):
        return "constant"
    return model if model in (INJECTED, FEDERATED) else "other"
