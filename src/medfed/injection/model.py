"""The injected LLM: projectors, router and experts around the frozen foundation (FedKIM Sec. 2.3.2, steps 1 to 3).

It reads what :mod:`medfed.injection.encode` shows of an example, and returns the log-likelihood of every answer
of every example's task: what training needs and what scoring needs are the same numbers.

Feature alignment: g maps a modality's encoder tokens into the LLM's width (FedKIM, step 1 of Sec. 2.3.2).

The paper's g is linear; ``mlp`` (two layers, GELU) is the form later vision-language models use (Liu et al. 2024).

Deviation: g starts at the scale of the LLM's own token embeddings, so that no modality token outshouts the text.

Logits of the asked positions alone: in a batch of several tasks, an answer of one token asks one position per row.

The LLM keeps the trailing positions that the longest answers ask (``logits_to_keep``); a hook on its head takes from
these the ones that each row asks. So the LLM's own forward stays in charge of what it does to its logits.

Keys and values of a prompt's shared beginning, computed once (order ``task_first``: the question is the same for all
examples of a task).

They depend on the LLM's weights, its experts and α, so they live no longer than a block in which none of these changes,
and serve only where no gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache

from medfed.core.errors import StudyError
from medfed.injection.batching import buckets, overhead
from medfed.injection.encode import HEAD, Group
from medfed.injection.experts import ADAPTER, RoutedLoraModel, add_experts
from medfed.injection.router import Router
from medfed.injection.texts import Texts
from medfed.llm.decoding import decode_greedily
from medfed.llm.foundation import Foundation
from medfed.llm.prompt import Prompt, Sequences, answer_log_likelihoods, assemble, pad_left
from medfed.study.injection import InjectionSettings, ProjectorKind
from medfed.tasks.base import Task


class InjectedModel(nn.Module):
    """F with its adapters.

    Args:
        foundation: the frozen LLM; its weights are shared, never copied or changed.
        dims: token width of everything that is shown: of every modality's encoder, and of heads where they speak.
        settings: adapters and prompt.
    """

    def __init__(self, foundation: Foundation, dims: Mapping[str, int], settings: InjectionSettings) -> None:
        super().__init__()
        self.foundation, self.settings = foundation, settings
        scale = foundation.embedding_scale
        self.projectors = nn.ModuleDict(
            {
                module_name(name): Projector(settings.projector, dim, foundation.width, scale, name.startswith(HEAD))
                for name, dim in dims.items()
            }
        )
        self.llm = foundation.shared_copy()
        self._texts = Texts(foundation, settings.order)
        self._fixed = overhead(self.llm, self.llm.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr, operator]
        self._prefixes: Prefixes | None = None
        self.adapted = None
        if settings.num_experts:
            self.adapted = add_experts(
                self.llm, settings.num_experts, settings.rank, settings.alpha, settings.dropout, settings.router
            )

    def move_to(self, device: str) -> InjectedModel:
        """Move what is trained to ``device``; the LLM goes along unless its foundation is placed where it stays."""
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
        told = self._texts.described([task.task_description for task in tasks])
        weights: Tensor = router(told, self._texts.described([task.modality_description for task in tasks]))
        return weights

    @contextmanager
    def mixing(self, alpha: Float[Tensor, "batch expert"]) -> Iterator[None]:
        """Let the experts work with ``alpha`` inside the block, which must hold the backward pass too.

        One row of ``alpha`` serves a whole batch. Weights must not change inside a block that scores or decodes:
        beginnings that all examples of a task share are read once per block of one α.
        """
        before, self._prefixes = self._prefixes, Prefixes() if len(alpha) == 1 else None
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
        parts = asked_logits(self.llm, sizes, counts, lambda: self._logits(batch, cache))
        return [answer_log_likelihoods(prompt, part) for prompt, part in zip(prompts, parts, strict=True)]

    def answer_ids(self, groups: Sequence[Group], max_new_tokens: int) -> list[list[int]]:
        """Return a greedily decoded answer per example, group after group; call it inside :meth:`mixing`."""
        batch, cache = self._batch([replace(self.prompt(group.task), answers=()) for group in groups], groups)
        return decode_greedily(self.llm, self.foundation, batch, max_new_tokens, cache)

    def buckets(self, groups: Sequence[Group], num_forwards: int = 1) -> list[list[int]]:
        """Divide ``groups`` into buckets of similar length, each worth ``num_forwards`` of its own; returns numbers."""
        lengths = [self._length(group) for group in groups]
        return buckets(lengths, [len(group.batch) for group in groups], self._fixed * num_forwards)

    def laid_out(self, prompt: Prompt, group: Group) -> Sequences:
        """Return the LLM's input for one group: ``prompt`` around the projected tokens of its examples."""
        table = self.foundation.table
        tokens: list[Float[Tensor, "batch tokens width"]] = [table.new_zeros(len(group.batch), 0, table.shape[1])]
        present: list[Bool[Tensor, "batch tokens"]] = [table.new_zeros(len(group.batch), 0, dtype=torch.bool)]
        for name, there in _shown(group):
            tokens.append(self.projectors[module_name(name)](group.encoded[name]).to(table.dtype))
            present.append(there.unsqueeze(1).expand(tokens[-1].shape[:2]))
        before = self._texts.embedded(prompt.before)
        after = self._texts.embedded(prompt.after + prompt.appended)
        return assemble(prompt, before, torch.cat(tokens, 1), torch.cat(present, 1), after)

    def prompt(self, task: Task) -> Prompt:
        """Return the task's texts as token ids."""
        return self._texts.prompt(task)

    def check(self, task: Task) -> None:
        """Make sure that ``task`` can be asked.

        Raises:
            StudyError: it reads a modality without a projector, or its answers cannot be told apart.
        """
        self.prompt(task)
        if missing := [name for name in task.modalities if name not in self.projectors]:
            raise StudyError(
                f"no projector for the modality {missing[0]!r}; there are {', '.join(self._modalities())}",
                where=f"task {task.name!r}",
                hint="train a task that reads this modality",
            )

    def _modalities(self) -> list[str]:
        return [name for name in self.projectors if not name.startswith(module_name(HEAD))]

    def _length(self, group: Group) -> int:
        prompt = self.prompt(group.task)
        texts = len(prompt.before) + len(prompt.after) + len(prompt.appended)
        return texts + sum(group.encoded[name].shape[1] for name, _ in _shown(group))

    def _batch(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Continued:
        """Lay ``groups`` out as one batch, behind what all of them share where that pays."""
        laid = [self.laid_out(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]
        batch, shared = pad_left(laid), prompts[0].before
        if self._prefixes is None or torch.is_grad_enabled() or any(prompt.before != shared for prompt in prompts):
            return Continued(batch, None)
        padded = len({part.positions.shape[1] for part in laid}) > 1
        if padded or not self._prefixes.pays(shared, len(batch.positions), self._fixed):
            return Continued(batch, None)
        return self._prefixes.continued(self._logits, shared, batch)

    def _logits(self, batch: Sequences, cache: object = None) -> Float[Tensor, "_ asked vocabulary"]:
        output = self.llm(
            inputs_embeds=batch.embeddings,
            attention_mask=self.foundation.mask(batch.allowed, batch.positions, batch.keys),
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=batch.num_asked,
        )
        logits: Tensor = output.logits
        return logits


def _shown(group: Group) -> Iterator[tuple[str, Bool[Tensor, " batch"]]]:
    """Yield what is shown of a group, in prompt order, and which examples have it: heads speak where anything is."""
    modalities = [name for name in group.task.modalities if name in group.encoded]
    for name in modalities:
        yield name, group.batch.present[name]
    some = torch.stack([group.batch.present[name] for name in group.task.modalities]).any(0)
    for name in group.encoded:
        if name.startswith(HEAD):
            yield name, some


class Projector(nn.Module):
    """``[batch, tokens, dim]`` → ``[batch, tokens, width]`` for one modality.

    Args:
        kind: ``linear`` or ``mlp``.
        dim: width of the encoder's tokens.
        width: the LLM's hidden size.
        scale: root mean square of the LLM's token embeddings.
        biased: start with a random bias. The LLM normalises what it reads, so of a few numbers through a linear map it
            would see the sign alone.
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
        projected: Tensor = self.layers(tokens)
        return projected


def module_name(shown: str) -> str:
    """Return the projector's name of what is shown: PyTorch allows no dot in a module's name."""
    return shown.replace(".", "-")


def asked_logits(
    llm: nn.Module,
    sizes: Sequence[int],
    counts: Sequence[int],
    run: Callable[[], Float[Tensor, "_ kept vocabulary"]],
) -> list[Float[Tensor, "_ asked vocabulary"]]:
    """Return the logits of the last ``counts[i]`` positions of the ``sizes[i]`` examples of every group.

    Args:
        llm: a causal LM; its head is ``get_output_embeddings``.
        sizes: examples by group, in the batch's order.
        counts: asked positions by group.
        run: runs ``llm`` on the batch, keeping as many positions as the largest of ``counts``.
    """
    most = max(counts)
    if min(counts) == most:
        return list(torch.split(run(), list(sizes)))
    asked = [row_count for size, row_count in zip(sizes, counts, strict=True) for _ in range(size)]
    wanted = torch.arange(most) >= most - torch.tensor(asked).unsqueeze(1)

    def pick(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        hidden: Tensor = inputs[0]
        return (hidden[wanted.to(hidden.device)].unsqueeze(0),)

    handle = llm.get_output_embeddings().register_forward_pre_hook(pick)  # type: ignore[operator]
    try:
        logits = run()[0]
    finally:
        handle.remove()
    parts = torch.split(logits, [size * count for size, count in zip(sizes, counts, strict=True)])
    return [part.view(size, -1, part.shape[-1]) for part, size in zip(parts, sizes, strict=True)]


Layers = list[tuple[Float[Tensor, "1 head position size"], Float[Tensor, "1 head position size"]]]
"""Keys and values of every layer."""


class Continued(NamedTuple):
    """Examples whose beginning the LLM has read: what follows it, and the keys and values of all that came before."""

    rest: Sequences
    cache: DynamicCache | None


class Prefixes:
    """Beginnings read so far, by their token ids; make one per block of unchanged weights and α."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, ...], Layers] = {}

    def pays(self, ids: tuple[int, ...], size: int, fixed: float) -> bool:
        """Whether reading ``ids`` once for ``size`` examples saves more positions than a forward more costs."""
        return ids in self._read or (size - 1) * len(ids) > fixed

    def continued(
        self, run: Callable[[Sequences, DynamicCache], Tensor], ids: tuple[int, ...], batch: Sequences
    ) -> Continued:
        """Return what follows the beginning ``ids``, which all of ``batch`` share, behind its keys and values.

        ``run`` lets the LLM read a batch, filling the cache.
        """
        if ids not in self._read:
            self._read[ids] = _read(run, batch, len(ids))
        size, length = len(batch.embeddings), len(ids)
        cache = DynamicCache([tuple(part.expand(size, -1, -1, -1) for part in layer) for layer in self._read[ids]])
        rest = replace(
            batch,
            embeddings=batch.embeddings[:, length:],
            allowed=batch.allowed[:, length:],
            positions=batch.positions[:, length:],
            read=batch.positions[:, :length],
        )
        return Continued(rest, cache)


def _read(run: Callable[[Sequences, DynamicCache], Tensor], batch: Sequences, length: int) -> Layers:
    cache = DynamicCache()  # of the whole beginning, also in layers that look back only so far: the mask knows
    one = Sequences(
        batch.embeddings[:1, :length], batch.allowed[:1, :length, :length], batch.positions[:1, :length], num_asked=1
    )
    run(one, cache)
    return [(layer.keys, layer.values) for layer in cache.layers]
