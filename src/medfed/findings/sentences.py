"""Similarity in meaning of a finding and a clinical picture, by a sentence embedding: a control of an LLM's answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor

from medfed.findings.meaning import Odds


class Sentences:
    """all-MiniLM-L6-v2 in a folder: the mean of the last hidden states over the tokens, of unit length."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel  # noqa: PLC0415 (large; loaded where it is used)

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        """Return one vector a text."""
        rows = []
        for text in texts:
            ids = torch.tensor([self._tokenizer.encode(text).ids])
            rows.append(self._model(input_ids=ids).last_hidden_state[0].mean(0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def similarities(self, findings: Sequence[str], pictures: Sequence[str]) -> dict[str, Odds]:
        """Return picture → cosine of every finding with it."""
        cosines = self.embed(pictures) @ self.embed(findings).T
        return {picture: row.double().numpy() for picture, row in zip(pictures, cosines, strict=True)}
