"""Tumour segmentation in four MR sequences (Med-MMFL): whole tumour, tumour core, enhancing tumour."""

from __future__ import annotations

from medfed.datasets.brats import CLASSES
from medfed.tasks.base import Task
from medfed.tasks.segmentation import Segmentation

BRATS = Segmentation(
    name="brats",
    title="Brain tumour segmentation",
    dataset="brats",
    target="segmented",
    strata=("high_grade",),
    truth="tumour",
    modalities=("t1", "t1c", "t2", "flair"),
    answers=CLASSES,
    regions={"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)},
    question="Which voxels belong to the tumour's core, the oedema and the enhancing tumour?",
    task_description=(
        "Brain tumour segmentation involves outlining a glioma's enhancing part, its core and the surrounding oedema "
        "in multi-sequence magnetic resonance images."
    ),
    modality_description="Magnetic resonance images of the brain: T1, contrast-enhanced T1, T2 and FLAIR.",
)

TASKS: tuple[Task, ...] = (BRATS,)
