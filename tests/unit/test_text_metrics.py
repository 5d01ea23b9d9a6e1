"""Text metrics against numbers worked out by hand, and corpus BLEU against sacreBLEU's own on resampled corpora."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from medfed.evaluation.text_metrics import (
    bleu1,
    corpus_bleu,
    exact_match,
    longest_common_subsequence,
    per_example,
    rouge_l,
    signature,
    statistics,
    token_f1,
    words,
)


def test_normalisation_is_lower_case_without_punctuation_and_articles() -> None:
    assert words("The left  lung, an X-ray.") == ("left", "lung", "xray")
    assert words("another theory") == ("another", "theory"), "articles are whole words"
    assert words("The.") == ()


@pytest.mark.parametrize(
    ("reference", "answer", "f1", "bleu", "rouge", "exact"),
    [
        # 2 words shared of 3 predicted, 4 in the reference: F1 = 2·2/7; BLEU-1 = e^(1−4/3)·2/3; LCS "lower lobe" = 2.
        ("left lower lung lobe", "right lower lobe", 4 / 7, math.exp(-1 / 3) * 2 / 3, 4 / 7, 0),
        # Both words shared but turned round: bags agree, sequences share one.
        ("lung left", "left lung", 1, 1, 1 / 2, 0),
        # "yes yes yes" has one "yes" too many twice: clipped 1 of 3; F1 = 2·1/4.
        ("Yes.", "yes yes yes", 2 / 4, 1 / 3, 2 / 4, 0),
        ("The heart", "heart", 1, 1, 1, 1),
        ("heart", "lung", 0, 0, 0, 0),
        ("heart", "", 0, 0, 0, 0),
        ("the", "a", 0, 0, 0, 0),  # nothing is left of either: an answer without a word is wrong
    ],
)
def test_by_hand(reference: str, answer: str, f1: float, bleu: float, rouge: float, exact: float) -> None:
    pair = words(reference), words(answer)
    assert token_f1(*pair) == pytest.approx(f1)
    assert bleu1(*pair) == pytest.approx(bleu)
    assert rouge_l(*pair) == pytest.approx(rouge)
    assert exact_match(*pair) == exact


def test_longest_common_subsequence_skips_words_on_both_sides() -> None:
    assert longest_common_subsequence(tuple("abcbdab"), tuple("bdcaba")) == 4  # the textbook's "bcba"
    assert longest_common_subsequence((), ("a",)) == 0


def test_per_example_keeps_the_order_of_the_examples() -> None:
    found = per_example(["yes", "left lung"], ["no", "left lung"])
    assert found["exact_match"].tolist() == [0, 1]
    assert set(found) == {"token_f1", "exact_match", "bleu1", "rouge_l"}


TEXTS = [
    ("the left lower lobe of the lung", "The left lower lobe of a lung"),
    ("no pleural effusion is seen here today", "pleural effusion is seen"),
    ("Yes", "yes"),
    ("no", ""),
    ("baseline drift, static noise", "static noise, baseline drift in lead II"),
    ("axial plane of the chest", "coronal plane"),
]


def test_corpus_bleu_of_any_resample_is_sacrebleus() -> None:
    references, answers = zip(*TEXTS, strict=True)
    rng = np.random.default_rng(0)
    weights = np.concatenate([np.ones((1, 6)), rng.multinomial(6, np.full(6, 1 / 6), size=60), np.eye(6)])
    found = corpus_bleu(statistics(references, answers), weights.astype(float))
    for row, value in zip(weights.astype(int), found, strict=True):
        left, right = np.repeat(answers, row).tolist(), np.repeat(references, row).tolist()
        assert value == pytest.approx(BLEU(lowercase=True).corpus_score(left, [right]).score, abs=1e-9)
    assert 0 < found[0] < 100
    assert len(set(found.tolist())) > 10
    assert np.isnan(corpus_bleu(statistics(references, answers), np.zeros((1, 6))))[0]


def test_the_signature_names_case_and_smoothing() -> None:
    assert signature().startswith("nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:")
