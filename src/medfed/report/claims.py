"""Does injection help? Claims on a run, each judged by its interval alone, and the report's first sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from medfed.evaluation.verdict import CONTRADICTED, SUPPORTED, UNCLEAR, above_chance, better
from medfed.records.schema import Difference, ScoreFile, ScoreRow
from medfed.report.models import BEST_CONSTANT, FEDERATED, INJECTED
from medfed.report.text import bounds, number, plural

CHANCE = 0.5
"""AUROC of a constant answer."""
NO_VALUE = "no value"
TRAINED, UNSEEN, IN_WORDS = "better than federated-only", "above chance", "better than the best constant answer"
KINDS = {
    TRAINED: "Injected LLM better than the federated-only model, AUROC on {} with training",
    UNSEEN: "Injected LLM above chance, AUROC on {} without training",
    IN_WORDS: "Injected LLM better than the best constant answer, token F1 on {}",
}


class Claim(NamedTuple):
    """A claim on one task: what is claimed, the verdict, and the row that it rests on."""

    text: str
    verdict: str
    row: ScoreRow | Difference

    @property
    def evidence(self) -> str:
        """The difference with its interval, or why there is none; of a value, only what counts against it."""
        if self.row.value is None:
            return self.row.reason or ""
        if isinstance(self.row, ScoreRow):
            return "one answer only" if self.row.single_class else ""
        return f"{number(self.row.value, signed=True)} {bounds(self.row, 3, signed=True)}".strip()


def claims(scores: ScoreFile) -> dict[str, Claim]:
    """Return the claim on every task of a run with an injected LLM.

    Trained: AUROC minus the federated-only model's, on the same resamples of the same patients. Unseen: AUROC above
    chance. Answered in words: token F1 minus that of the best constant answer.
    """
    made = {}
    for gap in scores.differences:
        if (gap.model, gap.baseline, gap.metric, gap.part) == (INJECTED, FEDERATED, "auroc", None):
            made[gap.task] = _claim(TRAINED, better(gap), gap)
        if (gap.model, gap.baseline, gap.metric, gap.part) == (INJECTED, BEST_CONSTANT, "token_f1", "all"):
            made[gap.task] = against_constant(gap)
    for row in scores.rows:
        if (row.model, row.metric, row.part, row.role) == (INJECTED, "auroc", None, "unseen"):
            made[row.task] = _claim(UNSEEN, above_chance(row, CHANCE), row)
    return made


def against_constant(gap: Difference) -> Claim:
    """Return the claim that answers in words are better than the best constant answer."""
    return _claim(IN_WORDS, better(gap), gap)


def sentences(scores: ScoreFile) -> list[str]:
    """Return the verdicts in words, one sentence per kind of task; none for a run without an injected LLM."""
    made = list(claims(scores).values())
    by_kind = {sentence: [claim.verdict for claim in made if claim.text == kind] for kind, sentence in KINDS.items()}
    return [f"{text.format(plural(len(held), 'task'))}: {tally(held)}." for text, held in by_kind.items() if held]


def tally(verdicts: Iterable[str]) -> str:
    """Count verdicts: ``supported on 2, not distinguishable on 1, contradicted on 0``."""
    counts = Counter(verdicts)
    words = [SUPPORTED, UNCLEAR, CONTRADICTED, *([NO_VALUE] if counts[NO_VALUE] else [])]
    return ", ".join(f"{word} on {counts[word]}" for word in words)


def verdict_style(verdict: str) -> str:
    """Return the CSS classes of a verdict."""
    return f"outcome {verdict.replace(' ', '-')}"


def _claim(text: str, verdict: str, row: ScoreRow | Difference) -> Claim:
    return Claim(text, verdict if row.value is not None else NO_VALUE, row)
