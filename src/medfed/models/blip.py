"""BLIP-style visual question answering, classifying and generative (Li et al. 2022, BLIP, Fig. 2 and §3.1).

The study's encoders give tokens of every modality. The question, led by an [Encode] token, reads the other modalities
(the context) through pre-norm blocks of self-attention, cross-attention and MLP (Vaswani et al. 2017, decoder layer). A
closed task's head reads the [Encode] token. A generative task's decoder writes bytes: each attends to those before it,
and across to question and context.

Deviation: BLIP interleaves cross-attention with its question encoder; here the study's text encoder goes first and the
    blocks follow (ALBEF's order, Li et al. 2021), so that any encoder fits.
Deviation: BLIP's decoder looks at the fused question only; ours at the context as well, so that it can copy from a
    record.
Deviation: BLIP starts from pre-trained weights and a word-piece vocabulary; here weights start at random and answers
    are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.models.base import Encoder, Encoders, FederatedModel, Modalities, Tasks
from medfed.study.models import BlipSpec
from medfed.tasks.base import ClosedTask, Task
from medfed.tasks.generation import BOS, EOS, NUM_IDS, PAD, Generation


class Tokens(NamedTuple):
    """Token vectors, and which of them are there."""

    values: Float[Tensor, "batch tokens dim"]
    there: Bool[Tensor, "batch tokens"]


class Fused(NamedTuple):
    """The question after the fusion, [Encode] token first, and the context it read."""

    question: Tokens
    context: Tokens


class Blip(FederatedModel):
    """Encoders, fusion, heads of the closed tasks, and one decoder for the generative ones.

    An absent modality is masked out of every attention, and its encoder gets no gradient from that example.
    """

    def __init__(self, spec: BlipSpec, encoders: Encoders, modalities: Modalities, tasks: Tasks) -> None:
        super().__init__()
        for task in tasks:
            _check(task, spec)
        self.question = spec.question
        used = sorted({name for task in tasks for name in task.modalities})
        self.encoders = nn.ModuleDict({name: encoders[name].build(modalities[name]) for name in used})
        self.fusion = Fusion({name: encoders[name].dim for name in used}, spec)
        self.heads = nn.ModuleDict({task.name: task.head(spec.dim) for task in tasks if isinstance(task, ClosedTask)})
        lengths = [task.max_length for task in tasks if isinstance(task, Generation)]
        if lengths:
            self.decoder = ByteDecoder(max(lengths), spec)

    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "batch *out"]:
        """Return the outputs of the task's head, or logits ``[batch, length, id]`` of its answers' ids."""
        fused = self.fuse(task, batch)
        if isinstance(task, Generation):
            written = batch.target.long()
            before = torch.cat([torch.full_like(written[:, :1], BOS), written[:, :-1]], 1)
            return cast(Tensor, self.decoder(before, _memory(fused)))
        return cast(Tensor, self.heads[task.name](fused.question.values[:, 0]))

    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return the mean token of every modality of ``task``; zeros where absent."""
        every = {name: self.tokens(name, batch) for name in task.modalities}
        return {name: tokens.sum(1) / max(tokens.shape[1], 1) for name, tokens in every.items()}

    @torch.no_grad()
    def generate(self, task: Task, batch: Batch, length: int) -> Int[Tensor, "batch length"]:
        """Write the likeliest id after the likeliest, until every answer has ended; the rest is padding."""
        memory = _memory(self.fuse(task, batch))
        ids = torch.full((len(batch), length + 1), PAD, device=memory.values.device)
        ids[:, 0] = BOS
        going = torch.ones(len(batch), dtype=torch.bool, device=ids.device)
        for place in range(length):
            logits: Tensor = self.decoder(ids[:, : place + 1], memory)[:, -1]
            logits[:, [PAD, BOS]] = -torch.inf  # no part of any answer
            ids[going, place + 1] = logits.argmax(-1)[going]
            going = going & (ids[:, place + 1] != EOS)
            if not going.any():
                break
        return ids[:, 1:]

    def fuse(self, task: Task, batch: Batch) -> Fused:
        """Let the question of every example read its other modalities."""
        tokens = {name: self.tokens(name, batch) for name in task.modalities}
        there = {name: (values != 0).any(-1) for name, values in tokens.items()}  # a text's padding is zeros
        parts = {name: Tokens(tokens[name], there[name] & batch.present[name][:, None]) for name in tokens}
        fused: Fused = self.fusion(parts, self.question)
        return fused

    def tokens(self, modality: str, batch: Batch) -> Float[Tensor, "batch tokens dim"]:
        """Encode one modality of the examples that have it; zeros for the others, no token at all if none has it."""
        samples, present = batch.inputs[modality], batch.present[modality]
        encoder = cast(Encoder, self.encoders[modality])
        if not bool(present.any()):
            return samples.new_zeros(len(samples), 0, encoder.dim)
        seen: Tensor = encoder(samples[present])
        if bool(present.all()):
            return seen
        tokens = seen.new_zeros(len(samples), *seen.shape[1:])
        tokens[present] = seen
        return tokens


def _check(task: Task, spec: BlipSpec) -> None:
    if spec.question not in task.modalities:
        what = f"the task reads {', '.join(task.modalities)}, but the model {spec.name!r} needs {spec.question!r}"
        hint = "choose another model, or a task that asks a question"
        raise StudyError(what, where=f"task {task.name!r}", hint=hint)
    if not isinstance(task, ClosedTask | Generation):
        what = "the task has neither a head nor an answer in words"
        raise StudyError(what, where=f"task {task.name!r}", hint="choose another model")


def _memory(fused: Fused) -> Tokens:
    return Tokens(*(torch.cat(pair, 1) for pair in zip(fused.question, fused.context, strict=True)))


class Fusion(nn.Module):
    """The question, led by an [Encode] token, reads the tokens of the other modalities.

    Two learned tokens are always present, so that attention has a key when a modality is absent. [Encode] leads the
    question, and ``nothing`` the context.
    """

    def __init__(self, dims: Mapping[str, int], spec: BlipSpec) -> None:
        super().__init__()
        projections = {name: [nn.LayerNorm(width), nn.Linear(width, spec.dim)] for name, width in dims.items()}
        self.project = nn.ModuleDict({name: nn.Sequential(*layers) for name, layers in projections.items()})
        self.encode = nn.Parameter(0.02 * torch.randn(spec.dim))
        self.nothing = nn.Parameter(0.02 * torch.randn(spec.dim))
        self.blocks = _blocks(spec, spec.depth)

    def forward(self, parts: Mapping[str, Tokens], question: str) -> Fused:
        """Return the question after the blocks and the context, each led by its learned token."""
        wide = {name: Tokens(self.project[name](part.values), part.there) for name, part in parts.items()}
        query = _led(self.encode, [wide[question]])
        context = _led(self.nothing, [part for name, part in wide.items() if name != question])
        masks = {"tgt_key_padding_mask": ~query.there, "memory_key_padding_mask": ~context.there}
        return Fused(Tokens(self.blocks(query.values, context.values, **masks), query.there), context)


class ByteDecoder(nn.Module):
    """Causal: the logits at a place depend on the ids up to it, and on the memory."""

    def __init__(self, length: int, spec: BlipSpec) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_IDS, spec.dim)
        self.positions = nn.Parameter(0.02 * torch.randn(length, spec.dim))
        self.blocks = _blocks(spec, spec.decoder_depth)
        self.write = nn.Linear(spec.dim, NUM_IDS)

    def forward(self, ids: Int[Tensor, "batch length"], memory: Tokens) -> Float[Tensor, "batch length id"]:
        """Return logits of the id after each of ``ids``."""
        length, absent = ids.shape[1], ~memory.there
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        spelt = self.embed(ids) + self.positions[:length]
        logits: Tensor = self.write(self.blocks(spelt, memory.values, tgt_mask=later, memory_key_padding_mask=absent))
        return logits


def _led(first: Float[Tensor, " dim"], parts: list[Tokens]) -> Tokens:
    """Join ``parts`` behind the token ``first``."""
    size = len(parts[0].values)
    values = torch.cat([first.expand(size, 1, -1), *(part.values for part in parts)], 1)
    there = torch.cat([parts[0].there.new_ones(size, 1), *(part.there for part in parts)], 1)
    return Tokens(values, there)


def _blocks(spec: BlipSpec, depth: int) -> nn.TransformerDecoder:
    sizes = spec.dim, spec.num_heads, spec.mlp_ratio * spec.dim, spec.dropout
    layer = nn.TransformerDecoderLayer(*sizes, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerDecoder(layer, depth, norm=nn.LayerNorm(spec.dim))
