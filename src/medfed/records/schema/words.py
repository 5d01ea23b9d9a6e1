"""The weights of findings by LLMs, and the means over clinical pictures."""

from __future__ import annotations

from medfed.records.schema.base import File, Number, Record


class FindingScale(Record):
    """The usual value of a finding in its unit, the width by which a distance is counted, and its published limit."""

    middle: float
    width: float
    limit: float


class PictureWeights(Record):
    """The weights by which findings answer one task.

    Attributes:
        task: the task.
        picture: its name in the questions to the LLM.
        question: as users ask it.
        weights: model → finding → weight, those above 0, the strongest first; edit those of ``words``.
        scale: finding → what is usual of it.
        middle, width: of public patients' weighted sums, for the logistic function that makes them probabilities.
    """

    task: str
    picture: str = ""
    question: str = ""
    weights: dict[str, dict[str, float]] = {}
    scale: dict[str, FindingScale] = {}
    middle: float = 0.0
    width: float = 1.0


class PictureMean(Record):
    """The mean AUROC of a model over clinical pictures, or of the leading model minus ``baseline``, by patient."""

    model: str
    baseline: str | None = None
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    num_tasks: int = 0
    num_patients: int = 0


class WordsFile(File, path="words.json"):
    """``words.json``: the weights of findings by an LLM, and how well they answer clinical pictures.

    Attributes:
        llms: model → the LLM whose weights it has.
        pictures: the weights by task.
        means: the mean over all pictures of the same patients, model by model, and the paired differences.
    """

    llms: dict[str, str] = {}
    pictures: tuple[PictureWeights, ...] = ()
    means: tuple[PictureMean, ...] = ()
