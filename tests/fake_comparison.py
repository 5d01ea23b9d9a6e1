"""Fake runs of several cells and seeds, and a comparison of them in the form that the evaluation writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fake_run import TRAINED, UNSEEN, fake_run
from medfed.core.rng import numpy_rng
from medfed.records.schema import ComparisonFile

CELLS = {"FedKIM": 0.0, "FedPlug_L": -0.03, "FedPlug": -0.09}
"""Label → what its injected LLM loses against the first."""
METRICS = ("auroc", "balanced_accuracy", "accuracy", "precision", "recall", "f1")
CONSTANT = 0.5


def fake_runs(root: Path, num_seeds: int = 5) -> list[Path]:
    """Write one small run per cell and seed."""
    source, folders = fake_run(root, num_examples=20, num_resamples=10), []
    for number in range(len(CELLS)):
        for seed in range(num_seeds):
            folder = root / "ablation" / f"{number}c0ffee{number}-seed{seed}"
            folder.mkdir(parents=True)
            study = json.loads((source / "study.json").read_text()) | {"seed": seed, "name": "ablation"}
            study["injection"]["num_experts"] = (12, 1, 0)[number]
            (folder / "study.json").write_text(json.dumps(study))
            (folder / "provenance.json").write_text((source / "provenance.json").read_text())
            folders.append(folder)
    return folders


def fake_comparison(num_seeds: int = 5) -> ComparisonFile:
    """Return a comparison of :data:`CELLS`: the first is significantly better than the last, nothing else is."""
    rows, differences = [], []
    for label, loss in CELLS.items():
        for metric in METRICS:
            rows += _role(label, "trained", TRAINED, metric, loss, num_seeds)
            rows += _role(label, "unseen", UNSEEN, metric, loss, num_seeds)
            for role in ("trained", "unseen"):
                if label != "FedKIM":
                    pair = (("FedKIM", "fedkim"), (label, "fedkim"))
                    differences.append(_difference(*pair, role, metric, -loss, num_seeds))
            pair = ((label, "fedkim"), (label, "federated"))
            differences.append(_difference(*pair, "trained", metric, 0.01, num_seeds))
    seeds = {label: list(range(num_seeds)) for label in CELLS}
    facts = {"labels": list(CELLS), "seeds": seeds, "rows": rows, "differences": differences}
    return ComparisonFile.model_validate(facts)


def _role(label: str, role: str, tasks: Sequence[str], metric: str, loss: float, num_seeds: int) -> list[dict]:
    rows = []
    for number, task in enumerate([*tasks, f"mean-{role}"]):
        models = {"fedkim": 0.8 - 0.04 * number + loss, "always-no": CONSTANT, "always-yes": CONSTANT}
        models |= {"federated": 0.79 - 0.03 * number} if role == "trained" else {}
        for model, value in models.items():
            shared = (model, task, metric) if model != "fedkim" else (label, task, metric)
            noise = numpy_rng("fake comparison", *shared).normal(size=num_seeds) * 0.02 * (value != CONSTANT)
            seeds = np.clip(value + noise, 0, 1)
            mean, wide = float(seeds.mean()), 0.05 * (value != CONSTANT)
            rows.append(
                {"label": label, "model": model, "task": task, "role": role, "metric": metric, "part": None}
                | {"value": mean, "ci_low": mean - wide, "ci_high": mean + wide, "per_seed": seeds.tolist()}
                | {"n": 180, "num_seeds": num_seeds, "higher_is_better": True, "reason": None}
                | {"single_class": value == CONSTANT or (label, task) == ("FedPlug", "mp")}
            )
    return rows


def _difference(a: tuple[str, str], b: tuple[str, str], role: str, metric: str, gap: float, num_seeds: int) -> dict:
    significant = num_seeds >= 5 and gap > 0.05
    p = 0.002 if gap > 0.05 else 0.3
    return (
        {"label": a[0], "model": a[1], "baseline_label": b[0], "baseline_model": b[1], "task": f"mean-{role}"}
        | {"role": role, "metric": metric, "part": None, "value": gap, "ci_low": gap - 0.03, "ci_high": gap + 0.03}
        | {"p": p, "p_holm": min(1.0, 3 * p), "num_seeds": num_seeds, "significant": significant, "reason": None}
    )
