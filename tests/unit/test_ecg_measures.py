"""Measures of made ECGs whose rate, intervals, axis and waves are known."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float64

from medfed.modalities.ecg_measures import UNITS, measures_of
from medfed.modalities.signal import LEADS, SignalModality

pytest.importorskip("neurokit2", reason="the extra ecg is not installed")
HZ = 100
MODALITY = SignalModality()


def made(
    rate: float = 75.0,
    pr: float = 0.16,
    width: float = 0.012,
    gains: dict[str, float] | None = None,
    early: int | None = None,
    st: dict[str, float] | None = None,
    second_r: float = 0.0,
    p: float = 0.12,
) -> Float64[np.ndarray, "lead time"]:
    """Return ten seconds: P, R and T waves as Gaussians. ``pr`` is from the middle of P to that of R, in seconds."""
    time = np.arange(0, 10, 1 / HZ)
    beats = np.arange(0.5, 10, 60 / rate)
    if early is not None:
        beats[early] -= 0.35 * 60 / rate
    signal = np.zeros((len(LEADS), len(time)))
    for number, lead in enumerate(LEADS):
        gain = (gains or {}).get(lead, 1.0)
        for beat in beats:
            at = time - beat
            wave = 1.2 * gain * np.exp(-0.5 * (at / width) ** 2)
            wave += p * np.exp(-0.5 * ((at + pr) / 0.022) ** 2)
            wave += 0.25 * np.exp(-0.5 * ((at - 0.28) / 0.04) ** 2)
            wave += (st or {}).get(lead, 0.0) * ((at > 0.05) & (at < 0.2))
            if lead == "V1":
                wave += -0.6 * np.exp(-0.5 * ((at - 0.03) / 0.01) ** 2)
                wave += second_r * np.exp(-0.5 * ((at - 0.06) / 0.01) ** 2)
            signal[number] += wave
    return signal + 0.002 * np.random.default_rng(0).normal(size=signal.shape)


def measured(signal: Float64[np.ndarray, "lead time"]) -> dict[str, float]:
    given = MODALITY.measures(signal[None].astype(np.float32))
    assert set(given) == {f"ecg.{name}" for name in UNITS}
    return {name.removeprefix("ecg."): float(values[0]) for name, values in given.items()}


@pytest.mark.parametrize("rate", [45.0, 75.0, 120.0])
def test_the_rate(rate: float) -> None:
    assert measured(made(rate=rate))["rate"] == pytest.approx(rate, rel=0.02)


def test_a_longer_pr_is_longer_by_as_much() -> None:
    short, long = measured(made(pr=0.14)), measured(made(pr=0.24))
    assert 80 < long["pr"] - short["pr"] < 120
    assert 100 < short["pr"] < 200


def test_a_wider_complex_is_wider() -> None:
    assert measured(made(width=0.03))["qrs"] > measured(made(width=0.012))["qrs"] + 30


def test_the_axis() -> None:
    limb = {"I": 0.0, "II": 0.87, "III": 0.87, "AVR": -0.43, "AVL": -0.43, "AVF": 1.0}
    assert measured(made(gains=limb))["axis"] == pytest.approx(90, abs=12)
    left = {"I": 1.0, "II": -0.3, "III": -0.9, "AVL": 0.95, "AVF": -0.8}
    assert measured(made(gains=left))["axis"] < -30


def test_an_early_beat_is_counted() -> None:
    assert measured(made())["premature"] == 0
    assert measured(made(early=5))["premature"] > 0.05


def test_st_elevation_is_where_it_is() -> None:
    raised = measured(made(st=dict.fromkeys(("II", "III", "AVF"), 0.3)))
    flat = measured(made())
    assert raised["st_inferior"] > flat["st_inferior"] + 0.15
    assert abs(raised["st_lateral"] - flat["st_lateral"]) < 0.05


def test_a_second_r_wave_in_v1() -> None:
    assert measured(made(second_r=0.6))["rprime_v1"] > 0.2
    assert measured(made())["rprime_v1"] < 0.1


def test_voltages() -> None:
    low = measured(made(gains=dict.fromkeys(LEADS[:6], 0.2)))
    assert low["limb_voltage"] < 0.5 < measured(made())["limb_voltage"]
    assert measured(made(gains={"V5": 3.0}))["sokolow"] > 3.5


@pytest.mark.parametrize("signal", [np.zeros((12, 1000)), np.ones((12, 1000))])
def test_a_flat_record_has_no_measure(signal: Float64[np.ndarray, "lead time"]) -> None:
    given = measures_of(signal[None], HZ)
    assert all(np.isnan(values).all() for values in given.values())
