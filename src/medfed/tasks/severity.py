"""Who is in intensive care, and who dies: from a chest film with laboratory values, and from the first day's values.

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
    question="Based on this chest radiograph and these laboratory values, is the patient in intensive care?",
    task_description=(
        "The task involves interpreting a chest radiograph and laboratory values of a patient with COVID-19 to "
        "determine whether the patient is treated in intensive care."
    ),
    modality_description="Image and lab events",
)


def mortality(database: str, title: str) -> Classification:
    """Return death in hospital from the first day's laboratory values in one database."""
    return Classification(
        name=f"mortality-{database}",
        title=f"Death in hospital ({title})",
        dataset=database,
        target="mortality",
        modalities=("labs", "person"),
        question="Based on these clinical features, will the patient die in hospital?",
        task_description=(
            "The mortality prediction task involves interpreting laboratory values of the first 24 hours in intensive "
            "care to determine whether the patient dies before discharge from hospital."
        ),
        modality_description="Lab events, age and sex",
    )


TASKS: tuple[Task, ...] = (COVID_ICU, mortality("mimic-iv", "MIMIC-IV"), mortality("eicu", "eICU"))
