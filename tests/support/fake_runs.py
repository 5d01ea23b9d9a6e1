"""Run folders with plausible numbers, from simulated predictions, and a comparison of several."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medfed.core.rng import numpy_rng
from medfed.evaluation.score import score_run
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import ComparisonFile, ControlFile, Prediction, TaskFacts
from medfed.study.evaluation import EvaluationSettings

ANSWERS = ("No", "Yes")
TITLES = {
    "cd": "COVID-19 detection",
    "lod": "Lung opacity detection",
    "ead": "ECG abnormality detection",
    "mp": "Mortality prediction",
    "ped": "Pleural effusion",
    "ad": "Atelectasis",
    "ecd": "Enlarged cardiomediastinum",
    "ebd": "Ectopic beats",
    "sp": "Sepsis prediction",
}
TRAINED = {"cd": (0.25, 1.7, 1.0), "lod": (0.5, 1.2, 1.25), "ead": (0.55, 0.7, 1.3), "mp": (0.12, 0.02, 0.8)}
"""Task → prevalence, separation of the injected LLM, separation of the federated-only model."""
UNSEEN = {"ped": (0.3, 1.0), "ad": (0.35, 0.1), "ecd": (0.45, 0.5), "ebd": (0.5, 0.9), "sp": (0.08, -0.1)}
DATASETS = {
    "covid-radiography": "COVID-19 Radiography Database",
    "rsna-pneumonia": "RSNA Pneumonia Detection Challenge",
    "ptbxl": "PTB-XL",
    "yaib-mortality": "YAIB mortality",
    "chexpert": "CheXpert",
}
SKIPPED = {"example": "00007", "where": "records100/00007_lr.dat", "what": "truncated at byte 2048"}
NUM_ROUNDS, NUM_CLIENTS, NUM_EXPERTS = 10, 5, 12


def fake_run(root: Path, *, name: str = "demo", num_examples: int = 180, num_resamples: int = 200) -> Path:
    """Write a complete run folder under ``root`` and return it."""
    run = root / name[:20].replace("/", "_") / "1a2b3c4d-seed0"
    _json(run / "study.json", _study(name))
    _json(run / "provenance.json", _provenance())
    _json(run / "partition.json", _partition())
    _lines(run / "rounds.jsonl", _rounds())
    _lines(run / "timings.jsonl", _timings())
    _lines(run / "development.jsonl", _development("fedkim"))
    _lines(run / "federated-only" / "development.jsonl", _development("federated"))
    _lines(run / "federated-only" / "rounds.jsonl", _rounds())
    _lines(run / "injection" / "steps.jsonl", _steps())
    _lines(run / "injection" / "routing.jsonl", _routing())
    tasks = list(_predictions(num_examples))
    for task, _, lines in tasks:
        RunFolder(run).write_lines(lines, prediction_file(task))
    _json(run / "cards.json", _cards(tasks))
    RunFolder(run).write(score_run(tasks, 0, EvaluationSettings(num_resamples=num_resamples)))
    return run


def _predictions(num_examples: int) -> Iterable[tuple[str, TaskFacts, list[Prediction]]]:
    for task, (prevalence, *separations) in {**TRAINED, **UNSEEN}.items():
        rng = numpy_rng("fake", task)
        targets = (rng.random(num_examples) < prevalence).astype(int)
        models = ("fedkim", "federated")[: len(separations)]
        scores = {}
        for model, separation in zip(models, separations, strict=True):
            bias = np.log(prevalence / (1 - prevalence)) if model == "federated" else -0.3 - 3 * (task == "mp")
            logit = rng.normal(size=num_examples) + separation * (targets - 0.5) * 1.3 + bias
            positive = 1 / (1 + np.exp(-1.4 * logit))
            scores[model] = np.stack([1 - positive, positive], 1)
        lines = [
            Prediction(
                example=f"{task}-{number}",
                patient=f"{task}-patient-{number * 2 // 3}",
                truth=int(target),
                responses={model: values[number].tolist() for model, values in scores.items()},
            )
            for number, target in enumerate(targets)
        ]
        yield (
            task,
            TaskFacts(title=TITLES[task], role="trained" if task in TRAINED else "unseen", answers=ANSWERS),
            lines,
        )


def _cards(tasks: Sequence[tuple[str, TaskFacts, list[Prediction]]]) -> dict:
    views = {"ead": _trace, "ebd": _trace, "mp": _hours, "sp": _hours}
    cards = []
    for task, _, lines in tasks:
        for position in (3, 7):
            given = lines[position].responses
            cards.append(
                {
                    "task": task,
                    "example": f"{position:016x}",
                    "question": f"Does this example show {TITLES[task].lower()}?",
                    "gold": ANSWERS[lines[position].truth],
                    "probabilities": {
                        model: dict(zip(ANSWERS, values, strict=True)) for model, values in given.items()
                    },
                    "generated": {},
                    "experts": [{"expert": 4, "weight": 0.61}, {"expert": 11, "weight": 0.2}],
                    "views": views.get(task, _image)(position),
                    "withheld": None,
                }
            )
    return {"rule": "2 test examples per task, drawn from (seed, task)", "cards": cards}


def _image(position: int) -> list[dict]:
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    lungs = sum(np.exp(-((columns - side) ** 2) / 0.06 - rows**2 / 0.4) for side in (-0.42, 0.42))
    file = io.BytesIO()
    grey = 255 * (0.85 - 0.6 * lungs + 0.02 * (position % 5))
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return [{"kind": "image", "title": "image", "png": base64.b64encode(file.getvalue()).decode()}]


def _trace(position: int) -> list[dict]:
    phase = (np.arange(250) / 50 * (1 + position / 20)) % 1
    beat = np.exp(-((phase - 0.4) ** 2) / 2e-4) + 0.2 * np.exp(-((phase - 0.65) ** 2) / 4e-3)
    return [{"kind": "trace", "title": "ECG, lead II", "unit": "mV", "seconds": 5.0, "values": beat.tolist()}]


def _hours(position: int) -> list[dict]:
    hours = [80 + position + hour % 5 if hour % 4 else None for hour in range(24)]
    return [
        {"kind": "line", "title": "hr", "unit": "by hour", "values": hours},
        {"kind": "line", "title": "lact", "unit": "by hour", "values": [None] * 24},
    ]


def _study(name: str) -> dict:
    return {
        "name": name,
        "description": "Five hospitals, four tasks, ten rounds; a tiny LLM on the server.",
        "seed": 0,
        "train": list(TRAINED),
        "unseen": list(UNSEEN),
        "twins": {"num_patients": 400, "difficulty": 0.5},
        "partition": {"scheme": "dirichlet", "alpha": 0.5, "num_clients": NUM_CLIENTS},
        "encoders": {"image": {"name": "vit", "dim": 128}, "ecg": {"name": "conv", "dim": 128}},
        "algorithm": {"name": "fedavg"},
        "rounds": {"num_rounds": NUM_ROUNDS},
        "injection": {"learning_rate": 5e-4, "num_experts": NUM_EXPERTS, "rank": 8, "attention": "softmax"},
    }


def _provenance() -> dict:
    return {
        "medfed": "0.1.0",
        "commit": "3f9c1d7a52e84b60a1c2d3e4f5061728394a5b6c",
        "dirty": False,
        "python": "3.11.7",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "numpy": "2.4.6"},
        "device": "cpu",
        "threads": 1,
        "started": "2026-01-05T10:00:00+00:00",
        "finished": "2026-01-05T10:02:51+00:00",
        "command": "medfed run studies/demo.toml",
        "titles": TITLES,
        "data": {
            key: {
                "title": f"{title} (synthetic twin)",
                "version": "synthetic",
                "licence": "Apache-2.0",
                "synthetic": True,
                "citation": "generated by medfed; no patient is behind it",
                "num_examples": 1800,
                "num_patients": 1200,
                "skipped": [{"example": "p7", "where": "images/p7.png", "what": "truncated at byte 2048"}][
                    : key == "ptbxl"
                ],
                "checksum": "9b1f27c0d4e8a653",
            }
            for key, title in DATASETS.items()
        },
        "foundation": {
            "kind": "tiny",
            "num_parameters": 1_204_736,
            "perplexity_before": 3.41,
            "perplexity_after": 3.41,
            "fingerprint_before": "77ab20c1",
            "fingerprint_after": "77ab20c1",
        },
    }


def _partition() -> dict:
    rng = numpy_rng("fake", "partition")
    counts = {
        f"hospital-{number}": {
            task: {"No": int(200 * rng.beta(2, 3) * (1 - prevalence)), "Yes": int(200 * rng.beta(2, 3) * prevalence)}
            for task, (prevalence, *_) in TRAINED.items()
        }
        for number in range(1, NUM_CLIENTS + 1)
    }
    return {"scheme": "dirichlet", "seed": 0, "hash": "c0ffee12", "clients": {}, "server": {}, "counts": counts}


def _rounds() -> Iterable[dict]:
    rng = numpy_rng("fake", "rounds")
    for number in range(1, NUM_ROUNDS + 1):
        clients = [
            {
                "client": f"hospital-{client}",
                "losses": {t: 0.35 + 0.4 / number**0.5 + 0.05 * rng.normal() + 0.02 * client for t in TRAINED},
                "num_examples": 400,
                "num_steps": 25,
                "bytes_up": 1_250_000,
                "bytes_down": 2_500_000,
            }
            for client in range(1, NUM_CLIENTS + 1)
            if (number, client) != (4, 3)
        ]
        failure = {"client": "hospital-3", "phase": "gate", "reason": "tensor heads.cd.1.weight is not finite"}
        yield {"round": number, "clients": clients, "failures": [failure] if number == 4 else []}


def _timings() -> Iterable[dict]:
    rng = numpy_rng("fake", "timings")
    yield {"round": 0, "phase": "pretrain", "client": None, "seconds": 14.2}
    for number in range(1, NUM_ROUNDS + 1):
        for client in range(1, NUM_CLIENTS + 1):
            seconds = 1.4 + 0.2 * rng.random()
            yield {"round": number, "phase": "train", "client": f"hospital-{client}", "seconds": seconds}
        yield {"round": number, "phase": "federate", "client": None, "seconds": 7.6 + 0.4 * rng.random()}
        yield {"round": number, "phase": "inject", "client": None, "seconds": 5.5 + rng.random()}
        yield {"round": number, "phase": "evaluate", "client": None, "seconds": 1.1 + 0.1 * rng.random()}


def _development(model: str) -> Iterable[dict]:
    rng = numpy_rng("fake", "development", model)
    for number in range(1, NUM_ROUNDS + 1):
        for task, separations in TRAINED.items():
            separation = separations[1 if model == "fedkim" else 2]
            auroc = 0.5 + 0.45 * np.tanh(separation / 1.6) * (1 - np.exp(-number / 3)) + 0.015 * rng.normal()
            row = {"round": number, "model": model, "task": task}
            yield {**row, "auroc": float(min(auroc, 1)), "balanced_accuracy": float(auroc - 0.06)}


def _steps() -> Iterable[dict]:
    rng = numpy_rng("fake", "steps")
    for step in range(1, 401):
        loss = 0.3 + 0.5 * np.exp(-step / 90) + 0.08 * abs(rng.normal())
        yield {"round": 1 + (step - 1) // 40, "step": step, "loss": float(loss), "losses": {}}


def _routing() -> Iterable[dict]:
    tasks = [*TRAINED, *UNSEEN]
    for number in range(1, NUM_ROUNDS + 1):
        alpha = {}
        for task in tasks:
            logits = numpy_rng("fake", "routing", task).normal(size=NUM_EXPERTS) * 0.12 * number
            weights = np.exp(logits) / np.exp(logits).sum()
            alpha[task] = weights.tolist()
        table = np.array(list(alpha.values()))
        distance = 0.5 * np.abs(table[:, None] - table[None]).sum(-1).max()
        entropy = {task: float(-(np.array(a) * np.log(a)).sum()) for task, a in alpha.items()}
        yield {"round": number, "alpha": alpha, "entropy": entropy, "total_variation": float(distance)}


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _lines(path: Path, records: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


EMBARRASSING = {
    "trained": {"federated": 0.9, "heads": 1.1, "local": 0.5, "centralised": 1.6, "count": 0.4, "lora": 1.0},
    "unseen": {"reuse/cd": 0.2, "reuse/nearest": 3.0, "reuse/mean": 0.9, "reuse/best": 3.5, "count": 0.1, "lora": 0.7},
}
"""Role → control → separation of its answers; the injected LLM's is 1 on trained tasks and 0.6 on unseen ones."""
WORDS = ("left lung", "right lung", "heart")


def fake_controlled_runs(root: Path, num_seeds: int = 3, num_examples: int = 120) -> list[Path]:
    """Write finished runs of one cell with every control, on two closed tasks and one with answers in words."""
    folders = []
    for seed in range(num_seeds):
        run = RunFolder(root / "controlled" / f"0c0ffee0-seed{seed}")
        _json(run.root / "study.json", _study("controlled") | {"seed": seed, "train": ["mp"], "unseen": ["sp", "mr"]})
        _json(run.root / "provenance.json", _provenance() | {"titles": TITLES | {"mr": "Questions on images"}})
        tasks = [_closed("mp", "trained", seed, num_examples), _closed("sp", "unseen", seed, num_examples)]
        tasks.append(_worded(seed, num_examples))
        for task, _, lines in tasks:
            run.write_lines(lines, prediction_file(task))
        run.write(score_run(tasks, seed, EvaluationSettings(num_resamples=200)))
        follows = {"reuse/cd": 0.5, "reuse/mp": 0.75 + 0.1 * seed}
        check = {"task": "sp", "rank_correlation": follows, "n": 50, "negation": 0.1 * seed, "paraphrases": 0.9}
        run.write(ControlFile.model_validate({"answers": [check]}))
        run.finish()
        folders.append(run.root)
    return folders


def _closed(task: str, role: str, seed: int, num_examples: int) -> tuple[str, TaskFacts, list[Prediction]]:
    targets = (numpy_rng("controlled", task).random(num_examples) < 0.4).astype(int)
    gaps = {"fedkim": 1.0 if role == "trained" else 0.6, **EMBARRASSING[role], "blind/other": 0.0}
    common = numpy_rng("controlled", task, seed).normal(size=num_examples)
    columns = {}
    for model, gap in gaps.items():
        own = numpy_rng("controlled", task, model, seed).normal(size=num_examples)
        columns[model] = 1 / (1 + np.exp(-(0.9 * common + 0.3 * own + gap * targets)))
    columns["blind/none"] = np.full(num_examples, 0.4)
    return task, TaskFacts(title=TITLES[task], role=role, answers=ANSWERS), yes_or_no(task, targets, columns)


def _worded(seed: int, num_examples: int) -> tuple[str, TaskFacts, list[Prediction]]:
    """Every other question is yes/no; the LLM is right on one open question of eight, its type's answer on four."""
    lines = []
    for number in range(num_examples):
        closed, target = number % 2 == 0, int(numpy_rng("worded", number).random() < 0.5)
        reference = ANSWERS[target] if closed else WORDS[number % 3]
        chance = 0.5 + (0.2 if target else -0.2) * (numpy_rng("worded", number, seed).random() < 0.8)
        said = {"fedkim": number % 16 == 1, "blind/other": number % 16 == 1, "blind/none": False}
        said |= {"blind/type": number % 4 == 1, "lora": number % 8 == 1}
        given = {
            model: {"text": reference if right else "nothing", "probabilities": [1 - chance, chance]}
            for model, right in said.items()
        }
        truth = {"reference": reference, "closed": closed, "target": target if closed else -1}
        example, patient = f"mr-{number}", f"mr-patient-{number}"
        lines.append(Prediction(example=example, patient=patient, question="?", truth=truth, responses=given))
    return "mr", TaskFacts(title="Questions on images", role="unseen", kind="questions", answers=ANSWERS), lines


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


def yes_or_no(task: str, targets: np.ndarray, columns: Mapping[str, np.ndarray]) -> list[Prediction]:
    """Predictions of a task with two answers; ``columns`` are model → P(yes), and every example is a patient's own."""
    return [
        Prediction(
            example=f"{task}-{number}",
            patient=f"{task}-patient-{number}",
            truth=int(target),
            responses={model: [1 - values[number], values[number]] for model, values in columns.items()},
        )
        for number, target in enumerate(targets)
    ]
