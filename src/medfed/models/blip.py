"""BLIP-style visual question answering, classifying and generative (Li et al. 2022, BLIP, Fig. 2 and §3.1).

The study's encoders give tokens of every modality. The question, led by an [Encode] token, reads the other modalities
(the context) through blocks of self-attention, cross-attention and MLP. A closed task's head reads the [Encode] token;
a generative task's decoder writes bytes, each looking back at those before it and across at question and context.

Deviation: BLIP interleaves cross-attention with its question encoder; here the study's text encoder goes first and the
    blocks follow (ALBEF's order, Li et al. 2021), so that any encoder fits.
Deviation: BLIP's decoder looks at the fused question only; ours at the context as well, so that it can copy from a
    record.
Deviation: BLIP starts from pre-trained weights and a word-piece vocabulary; here weights start at random and answers
    are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from medfed.errors import StudyError
from medfed.modalities.base import Encoder, EncoderSpec, Modality
from medfed.models.base import FederatedModel, ModelSpec
from medfed.models.blocks import ByteDecoder, Fusion, Tokens
from medfed.tasks.base import ClosedTask, Task
from medfed.tasks.generation import BOS, EOS, PAD, Generation
from medfed.types import Batch


class BlipSpec(ModelSpec):
    """Settings of the fusion and the decoder; a preset for two cores.

    Attributes:
        question: the modality that reads the others.
        dim: width.
        depth: blocks of the fusion.
        decoder_depth: blocks of the decoder.
        num_heads: attention heads; must divide ``dim``.
        mlp_ratio: width of a block's MLP in multiples of ``dim``.
        dropout: in every block.
    """

    name: ClassVar[str] = "blip"
    question: str = "question"
    dim: int = Field(default=64, gt=0)
    depth: int = Field(default=2, gt=0)
    decoder_depth: int = Field(default=1, gt=0)
    num_heads: int = Field(default=4, gt=0)
    mlp_ratio: int = Field(default=2, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_heads(self) -> BlipSpec:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim}")
        return self

    def build(
        self, encoders: Mapping[str, EncoderSpec], modalities: Mapping[str, Modality], tasks: tuple[Task, ...]
    ) -> Blip:
        """Return a freshly initialised model; raise StudyError for a task that asks no question or has no answer."""
        return Blip(self, encoders, modalities, tasks)


class BlipBaseSpec(BlipSpec):
    """BLIP-base: 12 blocks of width 768 and 12 heads, in the fusion and in the decoder.

    With a ViT-B/16 for the image and BERT-base for question and record it has 498 million parameters.
    """

    name: ClassVar[str] = "blip-base"
    dim: int = Field(default=768, gt=0)
    depth: int = Field(default=12, gt=0)
    decoder_depth: int = Field(default=12, gt=0)
    num_heads: int = Field(default=12, gt=0)
    mlp_ratio: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class Fused(NamedTuple):
    """The question after the fusion, [Encode] token first, and the context it read."""

    question: Tokens
    context: Tokens


class Blip(FederatedModel):
    """Encoders, fusion, heads of the closed tasks, and one decoder for the generative ones.

    An absent modality is masked out of every attention, and its encoder gets no gradient from that example.
    """

    def __init__(
        self,
        spec: BlipSpec,
        encoders: Mapping[str, EncoderSpec],
        modalities: Mapping[str, Modality],
        tasks: tuple[Task, ...],
    ) -> None:
        super().__init__()
        for task in tasks:
            _check(task, spec)
        self.question = spec.question
        used = sorted({name for task in tasks for name in task.modalities})
        self.encoders = nn.ModuleDict({name: encoders[name].build(modalities[name]) for name in used})
        blocks = spec.dim, spec.num_heads, spec.mlp_ratio * spec.dim, spec.dropout
        self.fusion = Fusion({name: encoders[name].dim for name in used}, spec.depth, *blocks)
        closed = {task.name: task for task in tasks if isinstance(task, ClosedTask)}
        self.heads = nn.ModuleDict({name: task.head(spec.dim) for name, task in closed.items()})
        lengths = [task.max_length for task in tasks if isinstance(task, Generation)]
        if lengths:
            self.decoder = ByteDecoder(max(lengths), spec.decoder_depth, *blocks)

    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "batch *out"]:
        """Return the outputs of the task's head, or logits ``[batch, length, id]`` of its answers' ids."""
        fused = self.fuse(task, batch)
        if isinstance(task, Generation):
            logits: Tensor = self.decoder(_shifted(batch.target.long()), _memory(fused))
            return logits
        outputs: Tensor = self.heads[task.name](fused.question.values[:, 0])
        return outputs

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
        parts = {name: self._masked(name, batch) for name in task.modalities}
        question, context = self.fusion(parts, self.question)
        return Fused(question, context)

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

    def _masked(self, modality: str, batch: Batch) -> Tokens:
        """Return tokens and which of them say something: a text encoder gives zeros for what is no word."""
        tokens = self.tokens(modality, batch)
        return Tokens(tokens, (tokens != 0).any(-1) & batch.present[modality][:, None])


def _check(task: Task, spec: BlipSpec) -> None:
    if spec.question not in task.modalities:
        raise StudyError(
            f"the task reads {', '.join(task.modalities)}, but the model {spec.name!r} needs {spec.question!r}",
            where=f"task {task.name!r}",
            hint="choose another model, or a task that asks a question",
        )
    if not isinstance(task, ClosedTask | Generation):
        raise StudyError(
            "the task has neither a head nor an answer in words",
            where=f"task {task.name!r}",
            hint="choose another model",
        )


def _memory(fused: Fused) -> Tokens:
    return Tokens(*(torch.cat(pair, 1) for pair in zip(fused.question, fused.context, strict=True)))


def _shifted(target: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Return what the decoder has seen when it writes each id: BOS, then the ids before."""
    return torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], 1)


MODELS: tuple[type[ModelSpec], ...] = (BlipSpec, BlipBaseSpec)
