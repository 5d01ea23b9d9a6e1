"""Who needs intensive care, and who dies: outcomes from a chest film with laboratory values, and from the first day.

Small open extracts exist for all of them, so the benchmark's code can be tried on real patients.
"""

from __future__ import annotations

from medfed.tasks.base import Task
from medfed.tasks.classification import Classification

COVID_ICU = Classification(
    name="covid-icu",
    title="Intensive care in COVID-19",
    dataset="covid19-repository",
    target="icu",
    modalities=("image", "covid-labs"),
    question="Based on this chest radiograph and these laboratory values, does the patient need intensive care?",
    task_description=(
        "The task involves interpreting a chest radiograph and laboratory values of a patient with COVID-19 to "
        "determine whether the patient is treated in intensive care."
    ),
    modality_description="Image and lab events",
)

TASKS: tuple[Task, ...] = (COVID_ICU,)
