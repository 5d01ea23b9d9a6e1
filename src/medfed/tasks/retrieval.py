"""Retrieval across modalities: learn a shared space, then find an example's film by its ECG and blood tests.

Source: Saporta et al. 2024, Contrasting with Symile (CXR retrieval on Symile-MIMIC); Med-MMFL trains it federated. Two
tasks differ in the loss, Symile or pairwise InfoNCE (Radford et al. 2021, CLIP), and in the score of a candidate. The
multilinear inner product is the sum over coordinates of the product of the vectors. The model scales its
representations, so such products are logits already.

An example's candidates are the films of the whole test set, so chance depends on the set's size. With n candidates a
rank is uniform, accuracy is 1/n, recall@k is k/n and MRR is (1 + 1/2 + … + 1/n)/n. The release lists ten candidates per
query. If the set holds them all, the rank among those is given too, which is the number the paper reports.

Ties are counted against the model: a rank is one more than the number of *other* candidates that score at least as
high. So a model that maps everything to one point retrieves nothing. An absent film scores below all others.

Symile contrasts, for each modality as the anchor, an example's triple with triples whose *other* modalities were
shuffled. That gives n − 1 negatives per anchor (the authors' O(n) form), and every combination of them n² − 1.

Deviation: the shuffles are a function of the batch's example ids, so that a loss is a pure function of its batch.
Deviation: the authors learn an embedding for an absent modality (in their Symile-M3 experiments). Here an incomplete
    example is left out of the Symile loss, and of the pairs it lacks in the pairwise one. A client that lacks a
    modality altogether has a Symile loss of 0 and learns nothing from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import combinations
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.core.torch_rng import torch_rng
from medfed.core.types import Batch
from medfed.tasks.base import Json, TaskSet, TrainableTask

CANDIDATES = "candidates"
"""Index column that lists a query's candidate examples, if the dataset has one."""
Queries = Float[Tensor, "example query dim"]
Present = Bool[Tensor, "example query"]
Candidates = Float[Tensor, "candidate dim"]
Scores = Float[Tensor, "example candidate"]
Vectors = Float[Tensor, "batch modality dim"]


class Retrieval(TrainableTask, ABC):
    """Align the modalities, retrieve one of them (``retrieved``) by the others, which are the query."""

    kind: ClassVar[str] = "retrieval"
    metric_kind: ClassVar[str] = "retrieval"
    retrieved: str = "image"

    @property
    @abstractmethod
    def order(self) -> int:
        """How many vectors make a logit."""

    @abstractmethod
    def scores(self, queries: Queries, present: Present, candidates: Candidates) -> Scores:
        """Score every candidate for every example's query modalities; absent ones do not count."""

    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Return rank (1 is best) and number of candidates of every example's own film.

        Each is ``{"rank", "candidates"}`` in the whole set, and ``{"listed_rank", "listed_candidates"}`` among the
        candidates that the release lists, if the set holds those of every example.
        """
        scores = self.similarities(model, examples)
        count = len(examples)
        answers: list[Json] = [{"rank": rank, "candidates": count} for rank in ranks(scores, torch.arange(count))]
        for number, rows in enumerate(listed_candidates(examples) or ()):
            (rank,) = ranks(scores[None, number, rows], torch.tensor([rows.index(number)]))
            answers[number] |= {"listed_rank": rank, "listed_candidates": len(rows)}
        return answers

    def similarities(self, model: nn.Module, examples: TaskSet) -> Scores:
        """Return the score of every example's film (column) for every example's query (row), on the CPU."""
        batches = examples.batches_for(model)
        parts = [(model(self, batch).cpu().double(), self._present(batch).cpu()) for batch in batches]
        vectors, present = (torch.cat(part) for part in zip(*parts, strict=True))
        target = self.modalities.index(self.retrieved)
        query = [number for number in range(len(self.modalities)) if number != target]
        scores = self.scores(vectors[:, query], present[:, query], vectors[:, target])
        return scores.masked_fill(~present[None, :, target], -torch.inf)

    def truths(self, examples: TaskSet) -> list[Json]:
        """Return the place of every example's own film among the candidates."""
        return list(range(len(examples)))

    def constants(self, examples: TaskSet) -> dict[str, list[Json]]:
        """Return what one point for all films gives: every candidate ties, which counts against the model."""
        last = {"rank": len(examples), "candidates": len(examples)}
        return {"constant-tie": [last] * len(examples)}

    def _present(self, batch: Batch) -> Bool[Tensor, "batch modality"]:
        return torch.stack([batch.present[name] for name in self.modalities], 1)


class SymileRetrieval(Retrieval):
    """The Symile loss, and the multilinear inner product as the score."""

    negatives: Literal["n", "n_squared"] = "n"
    """``n`` shuffles the other modalities once per anchor; ``n_squared`` takes all combinations."""

    @property
    def order(self) -> int:
        """One vector per modality."""
        return len(self.modalities)

    def loss(self, outputs: Vectors, batch: Batch) -> Float[Tensor, ""]:
        """Symile loss over the complete examples; the shuffles are a pure function of the batch's example ids."""
        present, shuffles = self._present(batch).to(outputs.device), None
        if self.negatives == "n":
            rng, count = torch_rng("symile", *batch.examples), int(present.all(1).sum())
            shuffles = torch.stack([torch.randperm(count, generator=rng) for _ in self.modalities])
        with torch.autocast(outputs.device.type, enabled=False):  # bfloat16 leaves two digits of a logit
            return symile_loss(outputs.float(), present, shuffles)

    def scores(self, queries: Queries, present: Present, candidates: Candidates) -> Scores:
        """Multilinear inner product of a candidate and the query modalities that are present; 0 if none is."""
        product = queries.masked_fill(~present[..., None], 1).prod(1)
        return (product * present.any(1, keepdim=True)) @ candidates.T


class PairwiseRetrieval(Retrieval):
    """InfoNCE summed over the pairs of modalities, and the sum of inner products as the score."""

    @property
    def order(self) -> int:
        """Two vectors make a logit."""
        return 2

    def loss(self, outputs: Vectors, batch: Batch) -> Float[Tensor, ""]:
        """Sum over pairs of the symmetric InfoNCE of the examples that have both."""
        with torch.autocast(outputs.device.type, enabled=False):
            return pairwise_loss(outputs.float(), self._present(batch).to(outputs.device))

    def scores(self, queries: Queries, present: Present, candidates: Candidates) -> Scores:
        """Sum over the query modalities of the inner product with the candidate; an absent one adds 0."""
        return (queries * present[..., None]).sum(1) @ candidates.T


def ranks(scores: Float[Tensor, "query candidate"], right: Int[Tensor, " query"]) -> list[int]:
    """Return the 1-based rank of every query's ``right`` candidate, ties counted against it."""
    return (scores >= scores.gather(1, right[:, None])).sum(1).tolist()  # the right one is among them


def listed_candidates(examples: TaskSet) -> list[list[int]] | None:
    """Return the places in the set of every example's listed candidates; None unless every example has all of them."""
    if CANDIDATES not in examples.data.index.columns:
        return None
    place = {example: number for number, example in enumerate(examples.examples)}
    listed: list[list[str] | None] = examples.data.index[CANDIDATES].gather(examples.rows).to_list()
    if any(names is None or not set(names) <= place.keys() for names in listed):
        return None
    return [[place[name] for name in names or ()] for names in listed]


def symile_loss(
    vectors: Vectors, present: Bool[Tensor, "batch modality"], shuffles: Int[Tensor, "modality complete"] | None
) -> Float[Tensor, ""]:
    """Return the mean over anchors of the Symile loss over the complete examples.

    ``shuffles`` has a permutation of the complete examples per modality (O(n) negatives); None takes all combinations
    (O(n²)). Where fewer than two examples are complete there is nothing to contrast: 0, with a gradient of 0.
    """
    complete = vectors[present.all(1)]
    if len(complete) < 2:
        return vectors.sum() * 0
    return torch.stack([_anchored(complete, anchor, shuffles) for anchor in range(complete.shape[1])]).mean()


def _anchored(
    vectors: Float[Tensor, "complete modality dim"], anchor: int, shuffles: Int[Tensor, "modality complete"] | None
) -> Float[Tensor, ""]:
    others = [number for number in range(vectors.shape[1]) if number != anchor]
    anchored = vectors[:, anchor]
    positive = vectors.prod(1).sum(-1)
    if shuffles is not None:
        mixed = torch.stack([vectors[shuffles[number], number] for number in others]).prod(0)
        logits = (anchored @ mixed.T).diagonal_scatter(positive)
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    mixed = vectors[:, others[0]]
    for number in others[1:]:
        mixed = (mixed[:, None] * vectors[None, :, number]).flatten(0, 1)
    return (torch.logsumexp(anchored @ mixed.T, 1) - positive).mean()


def pairwise_loss(vectors: Vectors, present: Bool[Tensor, "batch modality"]) -> Float[Tensor, ""]:
    """Return the sum over pairs of modalities of CLIP's symmetric InfoNCE, each over the examples that have both.

    A pair with fewer than two such examples adds 0.
    """
    total = vectors.sum() * 0
    for first, second in combinations(range(vectors.shape[1]), 2):
        both = present[:, first] & present[:, second]
        if int(both.sum()) >= 2:
            logits = vectors[both, first] @ vectors[both, second].T
            same = torch.arange(len(logits), device=logits.device)
            total = total + (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
    return total
