"""FedKIM's closed tasks (Wang et al. 2024, Table 2).

Questions and descriptions are data: they stand verbatim, odd wording ("CT image") included, for parity with the paper.

Chest X-ray findings beyond FedKIM's table, on data that is open, in the paper's wording.

FedKIM's open tasks (Wang et al. 2024, Table 2): questions about images and ECGs, asked of the injected LLM only.

The descriptions are data and stand verbatim. SLAKE is asked in English (``ms``) or in Chinese (``ms-zh``).

Who is in intensive care, and who dies: from a chest film with laboratory values, and from the first day's values.

Small open extracts exist for all of them, so the benchmark's code can be tried on real patients.
"""

from __future__ import annotations

from medfed.tasks.base import Task
from medfed.tasks.classification import Classification
from medfed.tasks.question_answering import QuestionAnswering

IMAGE = "Image only"


ECG = "ECG only"


CLINICAL = "Clinical features only, including lab events and vital signs."


ICU_MODALITIES = ("vitals", "labs", "input", "output")


def chest_finding(name: str, title: str, dataset: str, target: str, finding: str) -> Classification:
    """Return a chest X-ray finding task in the paper's wording."""
    return Classification(
        name=name,
        title=title,
        dataset=dataset,
        target=target,
        modalities=("image",),
        question=f"Does this image show evidence of {finding.lower()}?",
        task_description=(
            f"The {finding} {'prediction' if 'cardio' in finding else 'detection'} task involves interpreting chest "
            f"X-ray images to accurately determine the presence or absence of {finding}."
        ),
        modality_description=IMAGE,
    )


CD = Classification(
    name="cd",
    title="COVID-19 detection",
    dataset="covid-radiography",
    target="covid",
    modalities=("image",),
    question="Based on this image, is the patient COVID-19 positive?",
    task_description=(
        "The COVID-19 prediction task involves analyzing chest images to determine whether a patient is positive for "
        "COVID-19."
    ),
    modality_description=IMAGE,
)


LOD = Classification(
    name="lod",
    title="Lung opacity detection",
    dataset="rsna-pneumonia",
    target="lung_opacity",
    modalities=("image",),
    question="Assess this CT image: should it be classified as lung opacity?",
    task_description=(
        "Lung opacity classification involves using medical imaging techniques to distinguish between normal lung "
        "appearances and areas of increased density, which are indicative of various pulmonary conditions."
    ),
    modality_description=IMAGE,
)


EAD = Classification(
    name="ead",
    title="ECG abnormality detection",
    dataset="ptbxl",
    target="abnormal",
    modalities=("ecg",),
    question="Is the given ECG abnormal?",
    task_description=(
        "The ECG abnormal detection task involves analyzing ECG signals to determine whether they are normal or "
        "abnormal, based on specific clinical criteria."
    ),
    modality_description=ECG,
)


MP = Classification(
    name="mp",
    title="Mortality prediction",
    dataset="yaib-mortality",
    target="mortality",
    modalities=ICU_MODALITIES,
    question="Based on these clinical features, will the patient die in this stay?",
    task_description=(
        "The task aims at developing a machine learning model to predict the mortality of patients in intensive care "
        "using clinical data such as vital signs and lab results."
    ),
    modality_description=CLINICAL,
)


ECD = chest_finding(
    "ecd", "Enlarged cardiomediastinum", "chexpert", "enlarged_cardiomediastinum", "enlarged cardiomediastinum"
)


PED = chest_finding("ped", "Pleural effusion", "chexpert", "pleural_effusion", "Pleural Effusion")


AD = chest_finding("ad", "Atelectasis", "chexpert", "atelectasis", "Atelectasis")


EBD = Classification(
    name="ebd",
    title="Ectopic beats",
    dataset="ptbxl",
    target="ectopic_beats",
    modalities=("ecg",),
    question="Does the given ECG contain ectopic beats?",
    task_description="Ectopic Beats Detection",
    modality_description=ECG,
)


SP = Classification(
    name="sp",
    title="Sepsis prediction",
    dataset="yaib-sepsis",
    target="sepsis",
    modalities=ICU_MODALITIES,
    question="Based on these clinical features, will sepsis occur in this patient?",
    task_description=(
        "The task aims at developing a machine learning model to predict the onset of sepsis in patients using "
        "clinical data such as vital signs and lab results."
    ),
    modality_description=CLINICAL,
)


TASKS = (CD, LOD, EAD, MP, ECD, PED, AD, EBD, SP)


PNEUMONIA = chest_finding("pneumonia", "Pneumonia detection", "pneumoniamnist", "pneumonia", "Pneumonia")


PED_NIH = chest_finding("ped-nih", "Pleural effusion (NIH)", "chestxray14", "effusion", "Pleural Effusion")


AD_NIH = chest_finding("ad-nih", "Atelectasis (NIH)", "chestxray14", "atelectasis", "Atelectasis")


TASKS = (PNEUMONIA, PED_NIH, AD_NIH)


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


TASKS: tuple[Task, ...] = (
    COVID_ICU,
    mortality("mimic-iv", "MIMIC-IV"),
    mortality("eicu", "eICU"),
)
