"""The plain way to use an LLM behind encoders: every example padded to the longest, all logits, and ``generate``.

It shares projectors, router, experts and weights with the injector it is compared with, and nothing of how that lays
its prompts out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.patients import Server
from medfed.core.types import Batch
from medfed.injection.encode import encode
from medfed.llm.prompt import ANSWER, CUE, QUESTION
from medfed.tasks.base import Task

Examples = Sequence[tuple[Task, Batch]]


def rows(server: Server, examples: Examples) -> tuple[list[Tensor], list[list[int]], list[Task]]:
    """Return per example the embeddings of its prompt ``[position, width]``, its answer's ids and its task."""
    prompts, answers, tasks = [], [], []
    foundation = server.injector.injected.foundation
    for task, encoded, batch in encode(server.model, examples):
        question = foundation.tokenizer.encode(QUESTION.format(question=task.question))
        question = question + foundation.tokenizer.encode(CUE)
        start = list(foundation.tokenizer.starts)
        projectors = server.injector.injected.projectors
        replies = [foundation.tokenizer.encode(ANSWER.format(answer=answer)) for answer in task.answers]
        tokens = torch.cat([projectors[name](encoded[name]) for name in task.modalities], 1)
        for row, target in enumerate(batch.target.tolist()):
            prompts.append(torch.cat([foundation.embed(start), tokens[row], foundation.embed(question)]))
            answers.append(replies[target])
            tasks.append(task)
    return prompts, answers, tasks


def step_loss(server: Server, examples: Examples) -> Tensor:
    """Return the mean over examples of the mean cross-entropy of their answers' tokens."""
    injected = server.injector.injected
    prompts, answers, tasks = rows(server, examples)
    whole = [
        torch.cat([prompt, injected.foundation.embed(answer)]) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    length = max(map(len, whole))
    embeddings = torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in whole])
    mask = torch.stack([F.pad(torch.ones(len(row), dtype=torch.long), (0, length - len(row))) for row in whole])
    distinct = list({task.name: task for task in tasks}.values())
    alpha = injected.alpha(distinct)[[distinct.index(task) for task in tasks]]
    with injected.mixing(alpha):
        logits = server.llm(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits.float()
        labels = torch.full((len(whole), length), -100)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        per_example = losses.view(len(whole), -1).sum(1) / torch.tensor([float(len(answer)) for answer in answers])
        loss = per_example.mean()
        if torch.is_grad_enabled():
            loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


@torch.no_grad()
def generated(server: Server, task: Task, batch: Batch, num_tokens: int, read: int) -> list[str]:
    """Return the text of the first ``read`` of the ``num_tokens`` tokens that the LLM's own ``generate`` makes."""
    injected = server.injector.injected
    prompts, _, _ = rows(server, [(task, batch)])
    embeddings = torch.stack(prompts)
    with injected.mixing(injected.alpha([task]).expand(len(batch), -1)):
        ids = server.llm.generate(  # type: ignore[operator]
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
    return [injected.foundation.tokenizer.decode(row[:read]) for row in ids.tolist()]
