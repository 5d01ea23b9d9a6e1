"""Retrieval across modalities: learn a shared space, then find an example's film by its ECG and blood tests.

Source: Saporta et al. 2024, Contrasting with Symile (CXR retrieval on Symile-MIMIC); Med-MMFL trains it federated. Two
tasks differ in the loss (:mod:`medfed.tasks.contrastive`) and in the score of a candidate. The score is the multilinear
inner product of candidate and queries, or the sum of their inner products.

An example's candidates are the films of the whole test set, so chance depends on the set's size. With n candidates a
rank is uniform, accuracy is 1/n, recall@k is k/n and MRR is (1 + 1/2 + … + 1/n)/n. The release lists ten candidates per
query. If the set holds them all, the rank among those is given too, which is the number the paper reports.

Ties are counted against the model: a rank is one more than the number of *other* candidates that score at least as
high. So a model that maps everything to one point retrieves nothing. An absent film scores below all others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medfed.core.torch_rng import torch_rng
from medfed.core.types import Batch
from medfed.tasks.base import Json, TaskSet, TrainableTask
from medfed.tasks.contrastive import pairwise_loss, symile_loss

CANDIDATES = "candidates"
"""Index column that lists a query's candidate examples, if the dataset has one."""


class Retrieval(TrainableTask, ABC):
    """Align the modalities, retrieve one of them by the others.

    Attributes:
        retrieved: the modality that is looked for; all others are the query.
    """

    kind: ClassVar[str] = "retrieval"
    metric_kind: ClassVar[str] = "retrieval"
    retrieved: str = "image"

    @property
    @abstractmethod
    def order(self) -> int:
        """How many vectors make a logit."""

    @abstractmethod
    def scores(
        self,
        queries: Float[Tensor, "example query dim"],
        present: Bool[Tensor, "example query"],
        candidates: Float[Tensor, "candidate dim"],
    ) -> Float[Tensor, "example candidate"]:
        """Score every candidate for every example's query modalities; absent ones do not count."""

    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Return rank (1 is best) and number of candidates of every example's own film.

        Each is ``{"rank", "candidates"}`` in the whole set, and ``{"listed_rank", "listed_candidates"}`` among the
        candidates that the release lists, if the set holds those of every example.
        """
        scores = self.similarities(model, examples)
        count = len(examples)
        answers: list[Json] = [{"rank": rank, "candidates": count} for rank in ranks(scores, torch.arange(count))]
        listed = listed_candidates(examples)
        if listed is not None:
            for number, (answer, rows) in enumerate(zip(answers, listed, strict=True)):
                among = scores[number, rows]
                rank = ranks(among[None], torch.tensor([rows.index(number)]))[0]
                answer |= {"listed_rank": rank, "listed_candidates": len(rows)}
        return answers

    def similarities(self, model: nn.Module, examples: TaskSet) -> Float[Tensor, "example candidate"]:
        """Return the score of every example's film (column) for every example's query (row), on the CPU."""
        parts = [
            (model(self, batch).cpu().double(), self._present(batch).cpu()) for batch in examples.batches_for(model)
        ]
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
    """The Symile loss, and the multilinear inner product as the score.

    Attributes:
        negatives: ``n`` shuffles the other modalities once per anchor; ``n_squared`` takes all combinations.
    """

    negatives: Literal["n", "n_squared"] = "n"

    @property
    def order(self) -> int:
        """One vector per modality."""
        return len(self.modalities)

    def loss(self, outputs: Float[Tensor, "batch modality dim"], batch: Batch) -> Float[Tensor, ""]:
        """Symile loss over the complete examples; the shuffles are a pure function of the batch's example ids."""
        present = self._present(batch).to(outputs.device)
        shuffles = self._shuffles(batch, int(present.all(1).sum()))
        with _full_precision(outputs):
            return symile_loss(outputs.float(), present, shuffles)

    def scores(
        self,
        queries: Float[Tensor, "example query dim"],
        present: Bool[Tensor, "example query"],
        candidates: Float[Tensor, "candidate dim"],
    ) -> Float[Tensor, "example candidate"]:
        """Multilinear inner product of a candidate and the query modalities that are present; 0 if none is."""
        product = queries.masked_fill(~present[..., None], 1).prod(1)
        return (product * present.any(1, keepdim=True)) @ candidates.T

    def _shuffles(self, batch: Batch, count: int) -> Int[Tensor, "modality complete"] | None:
        if self.negatives == "n_squared":
            return None
        rng = torch_rng("symile", *batch.examples)
        return torch.stack([torch.randperm(count, generator=rng) for _ in self.modalities])


class PairwiseRetrieval(Retrieval):
    """InfoNCE summed over the pairs of modalities, and the sum of inner products as the score."""

    @property
    def order(self) -> int:
        """Two vectors make a logit."""
        return 2

    def loss(self, outputs: Float[Tensor, "batch modality dim"], batch: Batch) -> Float[Tensor, ""]:
        """Sum over pairs of the symmetric InfoNCE of the examples that have both."""
        with _full_precision(outputs):
            return pairwise_loss(outputs.float(), self._present(batch).to(outputs.device))

    def scores(
        self,
        queries: Float[Tensor, "example query dim"],
        present: Bool[Tensor, "example query"],
        candidates: Float[Tensor, "candidate dim"],
    ) -> Float[Tensor, "example candidate"]:
        """Sum over the query modalities of the inner product with the candidate; an absent one adds 0."""
        return (queries * present[..., None]).sum(1) @ candidates.T


def _full_precision(outputs: Tensor) -> torch.autocast:
    """Return a context without autocast: a product of three vectors in bfloat16 leaves two digits of a logit."""
    return torch.autocast(outputs.device.type, enabled=False)


def ranks(scores: Float[Tensor, "query candidate"], right: Int[Tensor, " query"]) -> list[int]:
    """Return the 1-based rank of every query's ``right`` candidate, ties counted against it."""
    score_of_right = scores.gather(1, right[:, None])
    at_least: list[int] = (scores >= score_of_right).sum(1).tolist()  # the right one is among them
    return at_least


def listed_candidates(examples: TaskSet) -> list[list[int]] | None:
    """Return the places in the set of every example's listed candidates; None unless every example has all of them."""
    if CANDIDATES not in examples.data.index.columns:
        return None
    place: Mapping[str, int] = {example: number for number, example in enumerate(examples.examples)}
    listed: Sequence[Sequence[str] | None] = examples.data.index[CANDIDATES].gather(examples.rows).to_list()
    if any(names is None or not set(names) <= place.keys() for names in listed):
        return None
    return [[place[name] for name in names or ()] for names in listed]
