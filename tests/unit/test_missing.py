"""Modalities taken away on purpose: the share is kept, one modality always stays, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.layout import take_away
from medfed.datasets.decoded import Decoded
from medfed.study.data import MissingSettings
from support.federated_toys import decoded

CLIENTS = {f"e{number}": f"c{number % 10}" for number in range(400)}


def data() -> Decoded:
    samples = {name: np.ones((500, 3), np.float32) for name in ("image", "text")}
    present = {"image": np.ones(500, bool), "text": np.arange(500) % 7 != 0}
    return decoded(samples, np.zeros(500, np.int8), present)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.8, 1.0])
def test_the_share_of_examples_is_kept(share: float) -> None:
    whole = data()
    less = take_away(whole, MissingSettings(share=share), CLIENTS, seed=0)
    both = whole.present["image"][:400] & whole.present["text"][:400]
    lost = both & ~(less.present["image"][:400] & less.present["text"][:400])
    assert lost.sum() / both.sum() == pytest.approx(share, abs=0.08)


def test_one_modality_always_stays_and_public_patients_keep_all() -> None:
    whole = data()
    less = take_away(whole, MissingSettings(share=1.0), CLIENTS, seed=0)
    assert (less.present["image"] | less.present["text"]).all()
    for name in ("image", "text"):
        np.testing.assert_array_equal(less.present[name][400:], whole.present[name][400:])
        assert not less.samples[name][~less.present[name] & whole.present[name]].any()
        np.testing.assert_array_equal(less.samples[name][less.present[name]], whole.samples[name][less.present[name]])
    assert whole.samples["image"].all(), "the input is changed"


def test_a_client_lacks_one_and_the_same_modality() -> None:
    less = take_away(data(), MissingSettings(by="client", share=0.5, modalities=("image",)), CLIENTS, seed=3)
    without = {CLIENTS[f"e{row}"] for row in range(400) if not less.present["image"][row]}
    assert len(without) == 5
    for row in range(400):
        expected = CLIENTS[f"e{row}"] not in without or not data().present["text"][row]
        assert bool(less.present["image"][row]) == expected
    np.testing.assert_array_equal(less.present["text"], data().present["text"])


def test_it_depends_on_the_seed_alone() -> None:
    settings = MissingSettings(share=0.5)
    one, two, other = (take_away(data(), settings, CLIENTS, seed).present["text"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
