"""A finished run without training: random weights everywhere, on a random Llama in a folder, in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medfed.runs.folder import RunDir
from transformers import PreTrainedTokenizerFast

from fake_run import fake_run
from injection_toys import TEXTS, language_model
from medfed.federated.rounds import initial_state
from medfed.federated.state import join
from medfed.injection.inject import Injector
from medfed.llm.foundation import load_foundation
from medfed.llm.tiny.pretrain import SPECIAL, train_tokenizer
from medfed.runs.federation import build_multimodal
from medfed.study.study import Study

ENCODERS = {"image": "vit-mini", "ecg": "conv1d", "vitals": "transformer"}
ENCODERS |= dict.fromkeys(("labs", "input", "output"), "transformer")
UNTRAINED = "ped"
"""A task that the run was asked, did not train, and calibrated."""
OFFSETS = [-3.0, -2.5]


def llm_folder(root: Path, **sizes: Any) -> Path:
    """Write a random Llama with its tokenizer and return its folder."""
    folder = root / "llm"
    language_model(**sizes).save_pretrained(folder)
    pad, start, end = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(TEXTS, 320), pad_token=pad, bos_token=start, eos_token=end
    )
    tokenizer.save_pretrained(folder)
    return folder


def finished_run(root: Path, llm: Path, *, learned: bool = True, model: str | None = None, **injection: Any) -> Path:
    """Write a run folder on the LLM in ``llm`` with random adapters, encoders and heads, and return it.

    Its experts are as they start unless they have ``learned``; its study says that the LLM is the Hub's ``model``.
    """
    folder = fake_run(root, num_resamples=20)
    study = _study(injection, model)
    run = RunDir(folder)
    foundation = load_foundation(study.foundation, cache=root, path=llm)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build_multimodal(study)
        injector = Injector(foundation, model, study.tasks, study.injection, study.seed)
        for name, value in [*model.named_parameters(), *injector.injected.named_parameters()]:
            if name.startswith("heads.") or (learned and "lora_B" in name) or ".router." in name:
                torch.nn.init.normal_(value, std=0.3)
    injector.offsets = {f"{task.name}: {task.question}": OFFSETS for task in study.tasks if task.name == UNTRAINED}
    state = initial_state(model, study.algorithm)
    tensors = join({"federated": state.tensors(), "injector": injector.state()})
    run.save_checkpoint(1, tensors, {"round": 1, "finished": True})
    injector.save(folder / "injection")
    run.write_json("study.json", study.resolved())
    run.write_json("normalisation.json", {name: _moments(study, name) for name in study.encoders})
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    run.write_json("provenance.json", {**facts, "corpus": None})
    run.finish()
    return folder


def _study(injection: dict[str, Any], model: str | None) -> Study:
    return Study.model_validate(
        {
            "name": "demo",
            "train": ["cd", "lod", "ead", "mp"],
            "unseen": ["ped", "ad", "ecd", "ebd", "sp"],
            "algorithm": "fedavg",
            "encoders": ENCODERS,
            "foundation": {"kind": "huggingface", "dtype": "float32", "model": model, "revision": model and "v1"},
            "injection": {"num_experts": 3, "rank": 2, **injection},
        }
    )


def _moments(study: Study, name: str) -> dict[str, list[float]]:
    rng = np.random.default_rng(len(name))
    channels = study.modality(name).num_channels
    mean, std, count = rng.uniform(0.2, 0.6, channels), rng.uniform(0.1, 0.3, channels), 100.0
    squares = count * (std**2 + mean**2)
    return {"count": [count] * channels, "total": (count * mean).tolist(), "squares": squares.tolist()}
