"""Dictate a chest radiograph: the reports of MIMIC-CXR's synthetic twin.

Like a radiologist, and unlike a label table: a finding may go unmentioned, an absent one may be named to exclude it, a
doubtful one is hedged, the indication names what was feared, and wording varies. So the words of a report are evidence
of its labels but do not give them away.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

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
SAID: dict[str, Wordings] = {
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
        _said(finding, state, rng)
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


def _said(finding: str, state: str, rng: np.random.Generator) -> str:
    sentence = str(rng.choice(SAID[state])).format(rng.choice(PHRASES[finding]))
    return sentence[0].upper() + sentence[1:]


def _lines(sentences: list[str]) -> str:
    return " \n ".join(sentences)
