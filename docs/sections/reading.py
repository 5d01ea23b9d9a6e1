"""The files to read, in order, to follow an injection run from the command to the report."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "medfed"
MAX_FILES, MAX_LINES = 25, 5000
FILES = (
    ("cli/app.py", "the command `medfed run`"),
    ("study/study.py", "all settings of a study"),
    ("runs/pipeline.py", "the order of the steps"),
    ("data/decode.py", "from files to arrays"),
    ("data/cohort.py", "examples by client, task and set"),
    ("tasks/base.py", "targets, questions, losses"),
    ("models/multimodal.py", "encoders, fusion, heads"),
    ("runs/federation.py", "one federation from first to last round"),
    ("federated/rounds.py", "one round"),
    ("federated/client.py", "the answer of a client"),
    ("federated/training.py", "local training"),
    ("federated/gate.py", "the checks of an update"),
    ("federated/aggregation.py", "the weighted sums"),
    ("federated/algorithm.py", "the hooks of an algorithm"),
    ("injection/inject.py", "the server's training of the LLM"),
    ("injection/distil.py", "the answers that teach it"),
    ("injection/encode.py", "encoder outputs and head tokens"),
    ("injection/model.py", "the LLM with prompt, projectors and experts"),
    ("injection/router.py", "the weights α of the experts"),
    ("injection/predict.py", "answers to test examples"),
    ("runs/predictors.py", "everything that responds to test examples"),
    ("evaluation/score.py", "scores with intervals"),
    ("report/single.py", "the report"),
)
"""File below ``src/medfed`` and what it holds."""


def num_lines(name: str) -> int:
    """Return the lines of a file of :data:`FILES`."""
    return len((PACKAGE / name).read_text(encoding="utf-8").splitlines())


def reading() -> str:
    """Return the numbered list with links; line counts are left out, since every change of a file would alter them."""
    lines = [f"{number}. [{name}](src/medfed/{name}): {text}" for number, (name, text) in enumerate(FILES, 1)]
    return "\n".join(lines)
