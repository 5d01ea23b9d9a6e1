"""Words for chest films: the reports of MIMIC-CXR's twin, and the questions of VQA-RAD's and SLAKE's twins.

A report is a radiologist's, not a label table. A finding may go unmentioned, an absent one may be named to exclude it,
and a doubtful one is hedged. The indication names the feared finding, and wording varies. So the words of a report are
evidence of its labels but do not give them away.

Questions are English in clinicians' style (VQA-RAD), and English and Chinese in SLAKE's. The wordings are ours; no
question of a dataset is copied.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medfed.twins.chest_questions import Mix, Vocabulary

PRESENT, ABSENT, UNCERTAIN = "1.0", "0.0", "-1.0"
"""States of a label, as the official table writes them; a label that is not mentioned is an empty cell."""
Wordings = tuple[str, ...]
PHRASES: dict[str, Wordings] = {
    "atelectasis": ("bibasilar atelectasis", "linear atelectasis at the base", "volume loss at the lung base"),
    "cardiomegaly": ("cardiomegaly", "enlargement of the cardiac silhouette"),
    "consolidation": ("focal consolidation", "airspace consolidation with air bronchograms"),
    "edema": ("interstitial edema", "vascular congestion with pulmonary edema"),
    "enlarged_cardiomediastinum": ("widening of the mediastinum", "enlarged cardiomediastinal contours"),
    "fracture": ("rib fracture", "fracture of the clavicle"),
    "lung_lesion": ("pulmonary nodule", "rounded mass"),
    "lung_opacity": ("patchy opacity", "hazy opacification of the lung"),
    "pleural_effusion": ("pleural effusion", "blunting of the costophrenic angle"),
    "pneumonia": ("pneumonia", "infectious process"),
    "pneumothorax": ("pneumothorax", "apical pleural line"),
    "support_devices": ("endotracheal tube", "central venous catheter", "enteric tube"),
}

SENTENCES: dict[str, Wordings] = {
    PRESENT: ("There is {}.", "{} is seen.", "Again noted is {}.", "{} is present."),
    ABSENT: ("There is no {}.", "No {} is identified.", "{} has resolved."),
    UNCERTAIN: ("Possible {}.", "{} cannot be excluded.", "Findings may represent {}."),
}

NORMAL = ("No acute cardiopulmonary process.", "The lungs are clear.", "Normal chest radiograph.")
FILLER = (
    "The patient is rotated.",
    "Lung volumes are low.",
    "Comparison is made with the prior study.",
    "Bony structures are unremarkable.",
    "The aorta is tortuous.",
    "Cardiac silhouette and hila are stable.",
)

FEARED = ("pneumonia", "pneumothorax", "pleural effusion", "pulmonary edema", "rib fracture")
SHARE_EXCLUDED, SHARE_WRONGLY_NORMAL = 0.25, 0.05
"""Chance that an absent finding is named to exclude it, and that a film with findings is called normal."""


def dictate(states: Mapping[str, str], omitted: float, rng: np.random.Generator) -> str:
    """Write the report of a film.

    Args:
        states: finding → :data:`PRESENT`, :data:`ABSENT` or :data:`UNCERTAIN`.
        omitted: chance that a finding goes unmentioned.
        rng: wording.
    """
    sentences = [
        _sentence(finding, state, rng)
        for finding, state in states.items()
        if rng.random() < (SHARE_EXCLUDED if state == ABSENT else 1 - omitted)
    ]
    sentences += [str(text) for text in rng.choice(FILLER, int(rng.integers(1, 4)), replace=False)]
    body = [sentences[place] for place in rng.permutation(len(sentences))]
    healthy = PRESENT not in {state for finding, state in states.items() if finding != "support_devices"}
    if rng.random() < (1 - omitted if healthy else SHARE_WRONGLY_NORMAL):
        body.append(str(rng.choice(NORMAL)))
    cut = int(rng.integers(1, len(body) + 1))
    feared = str(rng.choice(FEARED))
    return (
        f"{'FINAL REPORT':>45}\n EXAMINATION:  CHEST RADIOGRAPH\n\n"
        f" INDICATION:  ___-year-old with dyspnea // evaluate for {feared}\n\n"
        f" FINDINGS: \n \n {_lines(body[:cut])}\n \n IMPRESSION: \n \n {_lines(body[cut:] or body[-1:])}\n"
    )


def _sentence(finding: str, state: str, rng: np.random.Generator) -> str:
    sentence = str(rng.choice(SENTENCES[state])).format(rng.choice(PHRASES[finding]))
    return sentence[0].upper() + sentence[1:]


def _lines(sentences: list[str]) -> str:
    return " \n ".join(sentences)


CLINICAL = Vocabulary(
    terms={
        "effusion": "pleural effusion",
        "oedema": "pulmonary edema",
        "wide_mediastinum": "widened mediastinum",
        "gastric_air": "gastric air bubble",
        "consolidation": "lobar consolidation",
        "none": "no abnormality",
        "ct": "ct scan",
        **{str(number): word for number, word in enumerate(("zero", "one", "two", "three", "four", "five", "six"))},
        "left base": "left lung base",
        "right base": "right lung base",
        "left side": "left",
        "right side": "right",
        "both side": "bilateral",
    },
    templates={
        "presence": ("can {finding} be seen on this film?", "does the film show {finding}?", "any {finding} here?"),
        "normal": ("would you read this film as normal?", "is everything on the film within normal limits?"),
        "abnormal": ("is any pathology to be seen?", "would you call this film abnormal?"),
        "heart_large": ("is the cardiac silhouette larger than normal?", "has the heart grown beyond normal size?"),
        "large": ("is the {finding} extensive?", "is it a large {finding}?"),
        "on_side": ("does the {finding} lie on the patient's {side}?", "is the {side} side affected by {finding}?"),
        "is_modality": ("was this made by {term}?",),
        "is_organ": ("is this a film of the {term}?",),
        "is_plane": ("is this picture {term}?",),
        "left_or_right": ("is the {finding} left or right?", "on which side is the {finding}, left or right?"),
        "normal_or_abnormal": ("is the film normal or abnormal?",),
        "findings": ("what does the film show?", "which pathologies can be seen?"),
        "worst": ("what is the most striking abnormality?", "which pathology stands out?"),
        "where": ("where does the {finding} lie?", "in which part of the chest is the {finding}?"),
        "size": ("how big is the {finding}?",),
        "num_findings": ("how many kinds of pathology can be seen?",),
        "modality": ("how was this picture made?",),
        "view": ("which way did the beam pass?",),
        "organ": ("which part of the body was filmed?",),
        "lung_colour": ("which shade has air on this film?",),
    },
)

CLINICAL_MIX = Mix(
    groups={"yes": 0.288, "no": 0.249, "choice": 0.038, "open": 0.425},
    topics={
        "presence": ("PRES", 50),
        "normal": ("ABN", 7),
        "abnormal": ("ABN", 6),
        "heart_large": ("SIZE", 9),
        "large": ("SIZE", 5),
        "on_side": ("POS", 4),
        "is_modality": ("MODALITY", 4),
        "is_organ": ("ORGAN", 1),
        "is_plane": ("PLANE", 3),
        "left_or_right": ("POS", 3),
        "normal_or_abnormal": ("ABN", 1),
        "findings": ("PRES", 22),
        "worst": ("ABN", 14),
        "where": ("POS", 34),
        "size": ("SIZE", 3),
        "num_findings": ("COUNT", 3),
        "modality": ("MODALITY", 7),
        "view": ("PLANE", 5),
        "organ": ("ORGAN", 3),
        "lung_colour": ("COLOR", 1),
    },
)

ENGLISH = Vocabulary(
    terms={
        "effusion": "Pleural Effusion",
        "oedema": "Pulmonary Edema",
        "wide_mediastinum": "Widened Mediastinum",
        "gastric_air": "Gastric Air",
        "consolidation": "Pneumonia",
        "atelectasis": "Atelectasis",
        "cardiomegaly": "Cardiomegaly",
        "none": "None",
        "left": "Left",
        "right": "Right",
        "lung": "Lung",
        "heart": "Heart",
        "x-ray": "X-Ray",
        "ct": "CT",
        "mri": "MRI",
        "chest": "Chest",
        "head": "Head",
        "abdomen": "Abdomen",
        "frontal": "coronal plane",
        "axial": "transverse plane",
        "yes": "Yes",
        "no": "No",
        "normal": "Normal",
        "abnormal": "Abnormal",
        "left upper lobe": "Upper Left Lung",
        "right upper lobe": "Upper Right Lung",
        "left lower lobe": "Lower Left Lung",
        "right lower lobe": "Lower Right Lung",
        "left base": "Lower Left Lung",
        "right base": "Lower Right Lung",
        "left side": "Left Lung",
        "right side": "Right Lung",
        "both side": "Both Lung",
        "small": "Small",
        "large": "Large",
        "black": "Black",
        "breathe": "Breathe",
        "pump": "Promote blood flow",
    },
    templates={
        "presence": ("Does this chest picture show {finding}?", "Is {finding} visible in the picture?"),
        "normal": ("Is nothing abnormal in the picture?", "Does the chest in the picture look normal?"),
        "abnormal": ("Does the chest in the picture look abnormal?", "Is anything abnormal in the picture?"),
        "lungs_healthy": ("Are both lungs in the picture healthy?", "Do the lungs in the picture look healthy?"),
        "heart_large": ("Does the heart in the picture look enlarged?",),
        "on_side": ("Is {finding} visible on the {side} of the chest?",),
        "is_modality": ("Was {term} used for this picture?",),
        "is_organ": ("Does the picture show the {term}?",),
        "is_plane": ("Does the picture show a {term}?",),
        "contains": ("Is {term} among the organs in the picture?",),
        "left_or_right": ("Which side of the chest shows {finding}, left or right?",),
        "lung_or_heart": ("Which organ looks abnormal in the picture, lung or heart?",),
        "lung_heart_larger": ("Which takes more of the picture, lung or heart?",),
        "findings": ("Which diseases does the picture show?",),
        "where": ("Where does the picture show {finding}?",),
        "size": ("How large is the {finding} in the picture?",),
        "num_findings": ("How many diseases does the picture show?",),
        "modality": ("Which technique made this picture?",),
        "organ": ("Which body part does the picture show?",),
        "largest_organ": ("Which organ takes the most of the picture?",),
        "num_lungs": ("How many lungs does the picture show?",),
        "lung_colour": ("Which color do the lungs have in the picture?",),
        "lung_function": ("What does the body use the largest organ in the picture for?",),
        "heart_function": ("What does the heart in the picture do?",),
    },
)

CHINESE = Vocabulary(
    terms={
        "effusion": "胸腔积液",
        "oedema": "肺水肿",
        "wide_mediastinum": "纵隔增宽",
        "gastric_air": "胃泡",
        "consolidation": "肺炎",
        "atelectasis": "肺不张",
        "cardiomegaly": "心脏肥大",
        "none": "无",
        "left": "左侧",
        "right": "右侧",
        "lung": "肺",
        "heart": "心脏",
        "liver": "肝脏",
        "spleen": "脾脏",
        "x-ray": "X光",
        "ct": "CT",
        "mri": "核磁共振",
        "chest": "胸腔",
        "head": "头部",
        "abdomen": "腹部",
        "frontal": "冠状面",
        "axial": "横断面",
        "yes": "是",
        "no": "不是",
        "left upper lobe": "左上肺",
        "right upper lobe": "右上肺",
        "left lower lobe": "左下肺",
        "right lower lobe": "右下肺",
        "left base": "左下肺",
        "right base": "右下肺",
        "left side": "左肺",
        "right side": "右肺",
        "both side": "双肺",
        "small": "小",
        "large": "大",
        "black": "黑色",
        "breathe": "呼吸",
        "pump": "促进血液流动",
    },
    templates={
        "presence": ("这张胸片上是不是有{finding}?",),
        "normal": ("这张胸片是不是正常?",),
        "abnormal": ("这张胸片是不是异常?",),
        "lungs_healthy": ("胸片上两侧肺是不是健康?",),
        "heart_large": ("胸片上心脏是不是增大?",),
        "on_side": ("{finding}是不是在{side}?",),
        "is_modality": ("这张图是不是用{term}拍摄的?",),
        "is_organ": ("这张图拍的是不是{term}?",),
        "is_plane": ("这张图的平面是不是{term}?",),
        "contains": ("图里的器官是不是包括{term}?",),
        "left_or_right": ("{finding}在哪一侧,左侧还是右侧?",),
        "lung_or_heart": ("图里异常的是哪个器官,肺还是心脏?",),
        "lung_heart_larger": ("图里占得更多的是肺还是心脏?",),
        "findings": ("胸片上看得到哪些疾病?",),
        "where": ("{finding}在肺的什么位置?",),
        "size": ("{finding}的范围有多大?",),
        "num_findings": ("胸片上看得到几种疾病?",),
        "modality": ("这张图用什么方式拍摄?",),
        "organ": ("这张图拍的是身体哪里?",),
        "largest_organ": ("图里占得最多的是什么器官?",),
        "num_lungs": ("图里看得到几个肺?",),
        "lung_colour": ("肺在图里是什么颜色?",),
        "lung_function": ("图里最大的器官用来做什么?",),
        "heart_function": ("图里的心脏有什么作用?",),
    },
    comma=",",
)

SLAKE_MIX = Mix(
    groups={"yes": 0.173, "no": 0.167, "choice": 0.06, "open": 0.60},
    topics={
        "presence": ("Abnormality", 22),
        "normal": ("Abnormality", 8),
        "abnormal": ("Abnormality", 8),
        "lungs_healthy": ("Organ", 22),
        "heart_large": ("Size", 8),
        "on_side": ("Position", 8),
        "is_modality": ("Modality", 5),
        "is_organ": ("Organ", 6),
        "is_plane": ("Plane", 4),
        "contains": ("Organ", 8),
        "left_or_right": ("Position", 12),
        "lung_or_heart": ("Organ", 12),
        "lung_heart_larger": ("Size", 4),
        "findings": ("Abnormality", 12),
        "where": ("Position", 25),
        "size": ("Size", 5),
        "num_findings": ("Quantity", 6),
        "modality": ("Modality", 11),
        "organ": ("Organ", 8),
        "largest_organ": ("Organ", 6),
        "num_lungs": ("Quantity", 3),
        "lung_colour": ("Color", 4),
        "lung_function": ("KG", 9),
        "heart_function": ("KG", 8),
    },
)
