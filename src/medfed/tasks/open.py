"""FedKIM's open tasks (Wang et al. 2024, Table 2): questions about images and ECGs, asked of the injected LLM only.

The descriptions are data and stand verbatim. SLAKE is asked in English (``ms``) or in Chinese (``ms-zh``).
"""

from __future__ import annotations

from medfed.tasks.question_answering import QuestionAnswering

VISUAL = (
    "The medical Visual Question Answering task involves interpreting complex medical queries based on images and "
    "accurately providing answers, often based on specific clinical knowledge and patient case details."
)

MR = QuestionAnswering(
    name="mr",
    title="Questions on radiology images (VQA-RAD)",
    dataset="vqa-rad",
    modalities=("image",),
    task_description=VISUAL,
    modality_description="Text and image",
)

MS = QuestionAnswering(
    name="ms",
    title="Questions on radiology images (SLAKE)",
    dataset="slake",
    modalities=("image",),
    task_description=VISUAL,
    modality_description="Text and image",
)

SNC = QuestionAnswering(
    name="snc",
    title="Questions on ECG noise",
    dataset="ecg-qa",
    modalities=("ecg",),
    task_description=(
        "The medical question answering task involves interpreting complex medical queries and accurately providing "
        "answers, based on given signals concerning patient's health condition."
    ),
    modality_description="Text and signal.",
)

MS_ZH = MS.model_copy(
    update={
        "name": "ms-zh",
        "title": "Questions on radiology images (SLAKE, Chinese)",
        "dataset": "slake-zh",
        "answers": ("不是", "是"),
    }
)

TASKS = (MR, MS, SNC, MS_ZH)
