"""FedKIM's closed tasks (Wang et al. 2024, Table 2).

Questions and descriptions are data: they stand verbatim, odd wording ("CT image") included, for parity with the paper.
"""

from __future__ import annotations

from medfed.tasks.classification import Classification

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
