"""Chest X-ray findings beyond FedKIM's table, on data that is open, in the paper's wording."""

from __future__ import annotations

from medfed.tasks.fedkim import chest_finding

PNEUMONIA = chest_finding("pneumonia", "Pneumonia detection", "pneumoniamnist", "pneumonia", "Pneumonia")
PED_NIH = chest_finding("ped-nih", "Pleural effusion (NIH)", "chestxray14", "effusion", "Pleural Effusion")
AD_NIH = chest_finding("ad-nih", "Atelectasis (NIH)", "chestxray14", "atelectasis", "Atelectasis")

TASKS = (PNEUMONIA, PED_NIH, AD_NIH)
