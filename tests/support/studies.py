"""Small studies that several tests start from."""

from __future__ import annotations

from typing import Any

QUICK: dict[str, Any] = {
    "name": "quick",
    "train": ["lod", "ead", "mp"],
    "unseen": ["ped", "mr"],
    "baselines": [],
    "algorithm": "fedavg",
    "twins": {"num_patients": 30},
    "partition": {"num_clients": 1},
    "rounds": {"num_rounds": 1},
    "encoders": {"image": "vit-mini", "ecg": "conv1d"}
    | dict.fromkeys(("vitals", "labs", "input", "output"), "transformer"),
    "foundation": {"kind": "tiny", "num_steps": 2, "width": 32, "num_layers": 1, "vocab_size": 400},
    "injection": {"num_experts": 4, "rank": 2, "num_epochs": 1},
    "evaluation": {"num_resamples": 10, "max_new_tokens": 4},
}
"""All modalities that one can ask about, seconds to run."""
