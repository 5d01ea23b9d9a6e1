"""The injected LLM: projectors, router and experts around the frozen foundation (FedKIM Sec. 2.3.2, steps 1 to 3).

Its input is a group of examples with encoder tokens (:mod:`medfed.injection.encode`), its output the log-likelihood of
every answer of the group's task. Training and scoring need the same numbers.

The projector g maps a modality's encoder tokens into the LLM's width (step 1). The paper's g is linear; ``mlp`` (two
layers, GELU) is the form of later vision-language models (Liu et al. 2024).

Deviation: g starts at the scale of the LLM's own token embeddings, so that modality tokens do not drown the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from medfed.core.errors import StudyError
from medfed.injection.batching import fixed_cost, length_buckets
from medfed.injection.encode import HEAD, Group
from medfed.injection.experts import ADAPTER, RoutedLoraModel, add_experts
from medfed.injection.router import Description, Router
from medfed.llm.decoding import Decoded, decode_greedily
from medfed.llm.forward import PrefixCache, answer_logits, run
from medfed.llm.foundation import Foundation
from medfed.llm.prompt import Prompt, PromptBatch, answer_log_likelihoods, assemble, build_prompt, pad_left
from medfed.study.injection import InjectionSettings, Order, ProjectorKind
from medfed.tasks.base import Task

_NUM_PROMPTS, _NUM_EMBEDDED = 2048, 256
"""Texts kept; the least recently used goes first."""


class InjectedModel(nn.Module):
    """F with its adapters; the weights of ``foundation`` are shared, never copied or changed.

    ``dims`` are the widths of every encoder's tokens and of head tokens (:func:`encode.token_dims`).
    """

    def __init__(self, foundation: Foundation, dims: Mapping[str, int], settings: InjectionSettings) -> None:
        super().__init__()
        self.foundation, self.settings = foundation, settings
        kind, width, scale = settings.projector, foundation.width, foundation.embedding_scale
        built = {name: Projector(kind, dim, width, scale, name.startswith(HEAD)) for name, dim in dims.items()}
        self.projectors = nn.ModuleDict({module_name(name): projector for name, projector in built.items()})
        self.llm = foundation.shared_copy()
        self._texts = Texts(foundation, settings.order)
        self._fixed_cost = fixed_cost(self.llm, self.llm.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr, operator]
        self._prefixes: PrefixCache | None = None
        self.adapted = add_experts(self.llm, settings) if settings.num_experts else None

    def move_to(self, device: str) -> InjectedModel:
        """Move the trained parts to ``device``, and the LLM unless its foundation is placed."""
        if not self.foundation.placed:
            return self.to(device)
        self.projectors.to(device)
        if self.routed is not None:
            self.routed.router.to(device)
        return self

    @property
    def routed(self) -> RoutedLoraModel | None:
        """The routed experts, if there are any."""
        tuner = None if self.adapted is None else self.adapted.base_model
        return tuner if isinstance(tuner, RoutedLoraModel) else None

    def alpha(self, tasks: Sequence[Task]) -> Float[Tensor, "task expert"]:
        """Return the expert weights of ``tasks``: ones for a single expert, no columns without experts."""
        if self.routed is None:
            return torch.ones(len(tasks), self.settings.num_experts, device=self.foundation.table.device)
        router = cast(Router, self.routed.router[ADAPTER])
        described = self._texts.described([task.task_description for task in tasks])
        return cast(Tensor, router(described, self._texts.described([task.modality_description for task in tasks])))

    def even(self) -> Float[Tensor, "1 expert"]:
        """Return an α that mixes all experts equally; one for a single expert, no columns without experts."""
        if self.routed is None:
            return torch.ones(1, self.settings.num_experts, device=self.foundation.table.device)
        return self.routed.equal_weights(1)

    @contextmanager
    def mixing(self, alpha: Float[Tensor, "batch expert"]) -> Iterator[None]:
        """Mix the experts by ``alpha`` inside the block, which must hold the backward pass too.

        One row of ``alpha`` serves a whole batch. Weights must not change inside a block that scores or decodes: keys
        and values of shared prefixes are computed once per block of one α.
        """
        before = self._prefixes
        self._prefixes = PrefixCache(self.llm, self.foundation.windows, self._fixed_cost) if len(alpha) == 1 else None
        try:
            with nullcontext() if self.routed is None else self.routed.routing.using(alpha):
                yield
        finally:
            self._prefixes = before

    def forward(self, groups: Sequence[Group]) -> list[Float[Tensor, "batch answer"]]:
        """Return the log-likelihood of every answer, per group, padded to the longest; call it inside :meth:`mixing`.

        Where lengths differ, run it by :meth:`buckets`.
        """
        prompts = [self.prompt(group.task) for group in groups]
        batch, cache = self._batch(prompts, groups)
        sizes = [len(group.batch) for group in groups]
        counts = [1 + len(prompt.appended) for prompt in prompts]
        parts = answer_logits(self.llm, sizes, counts, lambda: run(self.llm, self.foundation.windows, batch, cache))
        return [answer_log_likelihoods(prompt, part) for prompt, part in zip(prompts, parts, strict=True)]

    def answer_ids(self, groups: Sequence[Group], max_new_tokens: int) -> list[list[Decoded]]:
        """Return a greedily decoded answer per example, per group; call it inside :meth:`mixing`."""
        batch, cache = self._batch([replace(self.prompt(group.task), answers=()) for group in groups], groups)
        answers = iter(decode_greedily(self.llm, self.foundation, batch, max_new_tokens, cache))
        return [[next(answers) for _ in range(len(group.batch))] for group in groups]

    def buckets(self, groups: Sequence[Group], num_forwards: int = 1) -> list[list[int]]:
        """Divide ``groups`` into buckets of similar length, each worth ``num_forwards`` of its own; returns numbers."""
        sizes = [len(group.batch) for group in groups]
        return length_buckets([self._length(group) for group in groups], sizes, self._fixed_cost * num_forwards)

    def prompt(self, task: Task) -> Prompt:
        """Return the task's texts as token ids."""
        return self._texts.prompt(task)

    def check(self, task: Task) -> None:
        """Raise StudyError if ``task`` reads a modality without a projector, or its answers are not distinct."""
        self.prompt(task)
        if missing := [name for name in task.modalities if name not in self.projectors]:
            known = ", ".join(name for name in self.projectors if not name.startswith(module_name(HEAD)))
            what = f"no projector for the modality {missing[0]!r}; there are {known}"
            raise StudyError(what, where=f"task {task.name!r}", hint="train a task that reads this modality")

    def _length(self, group: Group) -> int:
        prompt = self.prompt(group.task)
        texts = len(prompt.before) + len(prompt.after) + len(prompt.appended)
        return texts + sum(group.encoded[name].shape[1] for name, _ in _present(group))

    def _batch(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> tuple[PromptBatch, DynamicCache | None]:
        """Lay ``groups`` out as one batch, behind the cached prefix of all of them where that pays."""
        parts = list(map(self.laid_out, prompts, groups))
        batch, shared = pad_left(parts), prompts[0].before
        if self._prefixes is None or torch.is_grad_enabled() or any(prompt.before != shared for prompt in prompts):
            return batch, None
        padded = len({part.positions.shape[1] for part in parts}) > 1
        pays = not padded and self._prefixes.pays(shared, len(batch.positions))
        return self._prefixes.continued(shared, batch) if pays else (batch, None)

    def laid_out(self, prompt: Prompt, group: Group) -> PromptBatch:
        """Return ``prompt`` around the projected tokens of one group's examples."""
        table = self.foundation.table
        tokens: list[Float[Tensor, "batch tokens width"]] = [table.new_zeros(len(group.batch), 0, table.shape[1])]
        present: list[Bool[Tensor, "batch tokens"]] = [table.new_zeros(len(group.batch), 0, dtype=torch.bool)]
        for name, there in _present(group):
            tokens.append(self.projectors[module_name(name)](group.encoded[name]).to(table.dtype))
            present.append(there.unsqueeze(1).expand(tokens[-1].shape[:2]))
        before = self._texts.embedded(prompt.before)
        after = self._texts.embedded(prompt.after + prompt.appended)
        return assemble(prompt, before, torch.cat(tokens, 1), torch.cat(present, 1), after)


def _present(group: Group) -> Iterator[tuple[str, Bool[Tensor, " batch"]]]:
    """Yield a group's tokens in prompt order and who has them: of a head everybody with at least one modality."""
    present = {name: group.batch.present[name] for name in group.task.modalities}
    some = torch.stack(list(present.values())).any(0)
    yield from ((name, there) for name, there in present.items() if name in group.encoded)
    yield from ((name, some) for name in group.encoded if name.startswith(HEAD))


class Projector(nn.Module):
    """From the ``dim`` of a modality's tokens to the LLM's ``width``; ``scale`` is the RMS of its token embeddings.

    ``biased`` starts with a random bias. The LLM normalises its inputs: of a few numbers through a linear map alone,
    only the sign would remain.
    """

    def __init__(self, kind: ProjectorKind, dim: int, width: int, scale: float, biased: bool = False) -> None:
        super().__init__()
        last = nn.Linear(dim if kind == "linear" else width, width)
        nn.init.normal_(last.weight, std=scale / last.in_features**0.5)
        nn.init.normal_(last.bias, std=scale / 2) if biased else nn.init.zeros_(last.bias)
        hidden = [] if kind == "linear" else [nn.Linear(dim, width), nn.GELU()]
        self.layers = nn.Sequential(*hidden, last)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens width"]:
        """Project every token."""
        return cast(Tensor, self.layers(tokens))


def module_name(tokens: str) -> str:
    """Return the name of a projector by that of its tokens: PyTorch allows no dot in a module's name."""
    return tokens.replace(".", "-")


class Texts:
    """The frozen texts of an injected LLM, made once: prompts as token ids, embeddings of prompts and descriptions.

    Embeddings belong to the embedding table as it is in memory; after it moves or changes, they are made again.
    """

    def __init__(self, foundation: Foundation, order: Order) -> None:
        self._foundation = foundation
        self.prompt = lru_cache(_NUM_PROMPTS)(partial(build_prompt, tokenizer=foundation.tokenizer, order=order))
        self._embedded = lru_cache(_NUM_EMBEDDED)(self._embed)
        self._descriptions = lru_cache(_NUM_EMBEDDED)(self._describe)

    def embedded(self, ids: tuple[int, ...]) -> Float[Tensor, "position width"]:
        """Return the embeddings of token ids; do not write into them."""
        return self._embedded(ids, self._table())

    def described(self, texts: Sequence[str]) -> Description:
        """Return embedded descriptions; do not write into them."""
        return self._descriptions(tuple(texts), self._table())

    def _table(self) -> tuple[torch.device, int, int]:
        table = self._foundation.table
        return table.device, table.data_ptr(), table._version

    def _embed(self, ids: tuple[int, ...], _: object) -> Tensor:
        with torch.inference_mode(mode=False), torch.no_grad():  # scoring may make what training will read
            return self._foundation.embed(ids)

    def _describe(self, texts: tuple[str, ...], _: object) -> Description:
        with torch.inference_mode(mode=False), torch.no_grad():
            embedded = [self._foundation.embed(self._foundation.tokenizer.encode(text)) for text in texts]
            masks = [torch.ones(len(part), dtype=torch.bool, device=part.device) for part in embedded]
            return Description(pad_sequence(embedded, batch_first=True), pad_sequence(masks, batch_first=True))
