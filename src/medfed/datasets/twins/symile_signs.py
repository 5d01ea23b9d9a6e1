"""How a simulated physiology shows in a chest film, an ECG and blood values (the twin of Symile-MIMIC).

Signs are ±1. On the film a sign puts an opacity on the left or the right, one sign per height; in the ECG it turns the
T wave over in the chest leads, lifts or sinks the ST segment in the inferior leads, and turns the axis; in the blood it
raises or lowers a group of tests.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

NUM_SAMPLES, HZ = 1000, 500
"""Deviation: two seconds at the release's rate, where the release has ten: the twin's arrays stay small."""
LEADS = ("I", "II", "III", "AVR", "AVF", "AVL", "V1", "V2", "V3", "V4", "V5", "V6")
QRS = dict(zip(LEADS, (0.6, 1.0, 0.5, -0.8, 0.7, 0.2, -0.6, -0.3, 0.4, 0.9, 1.0, 0.8), strict=True))
CHEST, INFERIOR, AXIS = LEADS[6:], ("II", "III", "AVF"), ("I", "AVL", "AVR")


def draw_film(
    severity: float,
    heart: float,
    inflammation: float,
    signs: Float64[np.ndarray, " sign"],
    size: int,
    noise: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "row column"]:
    """Return a grey frontal film in [0, 1]: two dark lungs, a bright heart, haze, and one opacity per sign."""
    shift_x, shift_y = 0.04 * noise * rng.standard_normal(2)
    grid = np.linspace(-1, 1, size)
    x, y = grid[None, :] - shift_x, grid[:, None] - shift_y

    def blob(centre_x: float, centre_y: float, wide: float, high: float) -> Float64[np.ndarray, "row column"]:
        inside = ((x - centre_x) / wide) ** 2 + ((y - centre_y) / high) ** 2
        shade: np.ndarray = np.exp(-(inside**2))
        return shade

    film = 0.55 * blob(0.0, 0.0, 0.95, 1.1)
    haze = 0.12 * np.clip(inflammation, -2, 2)
    for side in (-1, 1):
        film -= (0.35 - haze) * blob(0.45 * side, -0.05, 0.33, 0.7)
    film += 0.35 * blob(0.1, 0.25, 0.25 + 0.09 * np.clip(heart, -2, 2), 0.3)
    strength = 0.3 + 0.12 * np.clip(severity, -2, 2)
    for place, sign in zip((-0.45, 0.0, 0.45), signs, strict=True):
        film += strength * blob(0.5 * sign, place, 0.16, 0.16)
    film += 0.05 * noise * rng.standard_normal((size, size))
    grey: np.ndarray = (film + 0.1).clip(0, 1).astype(np.float32)
    return grey


def record_ecg(
    severity: float, heart: float, signs: Float64[np.ndarray, " sign"], noise: float, rng: np.random.Generator
) -> Float32[np.ndarray, "time lead"]:
    """Return a 12-lead ECG scaled to [−1, 1]: severity is rate and T wave, the heart's size the width of the QRS."""
    period = 60 / np.clip(80 + 14 * severity, 45, 140)
    width = 0.02 + 0.007 * np.clip(heart, -2, 2)
    height = 0.3 + 0.1 * np.clip(severity, -2, 2)
    time = np.arange(NUM_SAMPLES) / HZ
    beats = np.arange(-1, 5) * period + rng.uniform(0, period)
    after = time[:, None] - beats

    def wave(delay: float, spread: float) -> Float64[np.ndarray, " time"]:
        bumps: np.ndarray = np.exp(-0.5 * ((after - delay) / spread) ** 2).sum(1)
        return bumps

    qrs, t_wave, st, p_wave = wave(0.0, width), wave(0.26, 0.05), wave(0.12, 0.04), wave(-0.15, 0.02)
    signal = np.empty((NUM_SAMPLES, len(LEADS)))
    for column, lead in enumerate(LEADS):
        turned = signs[2] if lead in AXIS else 1.0
        t_sign = signs[0] if lead in CHEST else 1.0
        lifted = 0.25 * signs[1] if lead in INFERIOR else 0.0
        signal[:, column] = turned * QRS[lead] * qrs + height * t_sign * t_wave + lifted * st + 0.12 * p_wave
    signal += 0.04 * noise * rng.standard_normal(signal.shape)
    signal += 0.05 * noise * np.sin(2 * np.pi * (0.3 * time + rng.random()))[:, None]
    low, high = signal.min(), signal.max()
    scaled: np.ndarray = 2 * (signal - low) / (high - low) - 1
    return scaled.astype(np.float32)


def draw_labs(
    severity: float,
    inflammation: float,
    signs: Float64[np.ndarray, " sign"],
    num_labs: int,
    noise: float,
    rng: np.random.Generator,
) -> Float64[np.ndarray, " lab"]:
    """Return blood values around 100; each test follows one of five causes; about a third are not measured (NaN)."""
    causes = np.array([severity, inflammation, *signs])
    values = 100 + 15 * (causes[np.arange(num_labs) % len(causes)] + noise * rng.standard_normal(num_labs))
    missing = rng.random(num_labs) < 0.3
    missing[rng.integers(num_labs)] = False
    return np.where(missing, np.nan, values)
