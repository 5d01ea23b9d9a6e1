"""The server's LLM F: a frozen causal LM with its tokenizer (FedKIM Sec. 2.1.2).

``huggingface`` loads one from disk, ``tiny`` pre-trains a small one on the spot. A new kind is one file with its
settings, and a line in :data:`FoundationSettings` and :func:`load_foundation`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from medfed.core.errors import StudyError
from medfed.federated.state import fingerprint
from medfed.llm.checkpoints import check_foundation
from medfed.llm.forward import windows_of
from medfed.llm.huggingface import load_language_model, locate
from medfed.llm.obtain.cached import checked_sum, named_folder
from medfed.llm.prompt import TextTokenizer
from medfed.llm.tiny.prepare import prepare_tiny
from medfed.study.foundation import FoundationSettings, HuggingFaceSettings, TinySettings

_ROWS_AT_ONCE = 65536


class Foundation:
    """A frozen causal LM; ``windows`` says how far back each type of its layers attends.

    ``model`` takes ``inputs_embeds``, ``attention_mask``, ``position_ids`` and ``logits_to_keep``; it is frozen here.
    ``placed``, its weights stay on the devices where they are. ``info`` holds facts for the record (how it was
    pre-trained, what it can do). ``source`` is its name on the Hub (in the local cache) or its folder.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: TextTokenizer,
        info: Mapping[str, Any],
        *,
        source: str | None = None,
        placed: bool = False,
    ) -> None:
        self.name, self.tokenizer, self.info = name, tokenizer, dict(info)
        self.source, self.placed = source or name, placed
        self.model = model.requires_grad_(False).eval()
        head = model.get_output_embeddings()  # type: ignore[operator]
        head.register_forward_pre_hook(_contiguous)
        self.windows = windows_of(self.model)

    @property
    def table(self) -> Float[Tensor, "vocabulary width"]:
        """The embedding table."""
        return cast(Tensor, self.model.get_input_embeddings().weight)  # type: ignore[operator]

    @property
    def width(self) -> int:
        """The hidden size."""
        return int(self.table.shape[1])

    @property
    def embedding_scale(self) -> float:
        """Root mean square of the token embeddings that the LLM's first layer reads."""
        parts = torch.arange(len(self.table), device=self.table.device).split(_ROWS_AT_ONCE)  # type: ignore[no-untyped-call]
        shares = torch.tensor([len(ids) / len(self.table) for ids in parts])
        squares = torch.stack([self._embedded(ids).float().square().mean().cpu() for ids in parts])
        return float((squares * shares).sum().sqrt())

    def embed(self, ids: Sequence[int]) -> Float[Tensor, "position width"]:
        """Return the embeddings of token ids, as the LLM's own module makes them: some scale the rows of the table."""
        return self._embedded(torch.tensor(ids, dtype=torch.long, device=self.table.device))

    def _embedded(self, ids: Int[Tensor, " position"]) -> Float[Tensor, "position width"]:
        return cast(Tensor, self.model.get_input_embeddings()(ids))  # type: ignore[operator]

    def move_to(self, device: str) -> str:
        """Move the weights to ``device``, unless they are placed already, and return the device of its inputs."""
        if not self.placed:
            self.model.to(device)
        return str(self.table.device)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all weights: another one afterwards proves that the foundation was not frozen."""
        return fingerprint(self.model.state_dict(), {})

    def shared_copy(self) -> nn.Module:
        """Return a second module over the *same* weights, for adapters to wrap; the foundation's own stays as it is."""
        shared = chain(self.model.parameters(), self.model.buffers())
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})


def _contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Let the output layer see contiguous memory: for a slice, its weight would be copied once per example."""
    return (inputs[0].contiguous(),)


def load_foundation(
    settings: FoundationSettings, *, cache: Path, corpus: Path | None = None, path: Path | None = None
) -> Foundation:
    """Load the LLM from the folder ``path``, or the tiny one, which is pre-trained if the folder ``cache`` lacks it.

    ``path`` may be the name of an LLM that the cache has. ``corpus`` is a folder of text for the tiny one; None takes
    the package's own. Raises StudyError if a folder does not suit the settings, or changed since it was converted.
    Raises DataError if the corpus cannot be read.
    """
    if isinstance(settings, TinySettings):
        if path is not None:
            what = "--foundation names a folder, but the study's LLM is 'tiny'"
            raise StudyError(what, where=path, hint="add --set foundation.kind=huggingface")
        folder, info = prepare_tiny(settings, cache, corpus)
        model, tokenizer, _ = load_language_model(HuggingFaceSettings(dtype="float32"), folder)
        return Foundation(f"tiny-{folder.name}", model, tokenizer, info, source=str(folder))
    if corpus is not None:
        raise StudyError("--corpus is text for the LLM 'tiny'; this study loads one", where=corpus, hint="leave it out")
    path = named_folder(path, settings.model, cache)
    folder = locate(settings, path)
    checksum = checked_sum(folder)
    if settings.sha256 is not None:
        check_foundation(folder, settings.sha256, checksum)
    model, tokenizer, folder = load_language_model(settings, path)
    name = settings.model or folder.resolve().name
    facts: dict[str, Any] = {"kind": "huggingface", "name": name, "revision": settings.revision, "sha256": checksum}
    facts |= {"dtype": settings.dtype, "load_in_4bit": settings.load_in_4bit}
    source = settings.model if path is None else str(folder)
    return Foundation(name, model, tokenizer, facts, source=source, placed=settings.placed)
