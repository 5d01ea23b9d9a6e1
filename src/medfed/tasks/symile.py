"""Med-MMFL's alignment and CXR retrieval on Symile-MIMIC, with the Symile loss and with pairwise InfoNCE."""

from __future__ import annotations

from medfed.tasks.retrieval import PairwiseRetrieval, Retrieval, SymileRetrieval

SYMILE = SymileRetrieval(
    name="symile",
    title="CXR retrieval, Symile loss",
    dataset="symile-mimic",
    target="finding",
    modalities=("image", "ecg", "lab-percentiles"),
    question="Which of these chest films was taken after this ECG and these blood tests?",
    answers=("No finding", "Finding"),
    task_description=(
        "The retrieval task involves finding the chest film of a patient among others, "
        "given the ECG and the blood tests of the same hospital admission."
    ),
    modality_description="Image, signal and laboratory values",
)

SYMILE_PAIRWISE = PairwiseRetrieval(
    **SYMILE.model_dump(exclude={"name", "title", "negatives"}),
    name="symile-pairwise",
    title="CXR retrieval, pairwise InfoNCE",
)

TASKS: tuple[Retrieval, ...] = (SYMILE, SYMILE_PAIRWISE)
