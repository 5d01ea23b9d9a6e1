"""Text as hashed words: no vocabulary is learned, so there is none to agree on between hospitals, and none to leak.

A word is a run of alphabetic characters or a single other sign, in lower case; its id is a hash of it. Two words of
:data:`NUM_WORDS` share an id rarely. Reports, questions and record texts of the benchmark's tasks are such texts.
"""

from __future__ import annotations

import re
import zlib
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Shaped
from pydantic import Field

from medfed.core.errors import DataError
from medfed.modalities.base import Modality

NUM_WORDS = 8192
"""Ids 1 … NUM_WORDS − 1 are words, 0 is padding. All are whole in float32."""
WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]")


class TextModality(Modality):
    """A text of at most ``num_tokens`` words; a longer one is cut."""

    units: ClassVar[str] = "word ids"
    num_tokens: int = Field(default=32, gt=0)

    @property
    def sample_shape(self) -> tuple[int]:
        """``(num_tokens,)``."""
        return (self.num_tokens,)

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, " token"]:
        """Turn UTF-8 bytes (uint8) into word ids, 0 after the end."""
        try:
            text = np.asarray(raw, np.uint8).tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"not UTF-8 text (byte {error.start})"
            raise DataError(what, where=self.name, hint="convert the file to UTF-8") from error
        ids = np.zeros(self.num_tokens, np.float32)
        words = WORD.findall(text.lower())[: self.num_tokens]
        ids[: len(words)] = [word_id(word) for word in words]
        return ids


def word_id(word: str) -> int:
    """Return the id of ``word``."""
    return 1 + zlib.crc32(word.encode()) % (NUM_WORDS - 1)


MODALITIES: tuple[Modality, ...] = (
    TextModality(name="question", num_tokens=24),
    TextModality(name="report", num_tokens=64),
    TextModality(name="ehr", num_tokens=96),
)
