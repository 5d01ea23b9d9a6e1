"""A training step of the injected LLM equals plain transformers with PEFT's LoRA, written out without medfed's layout.

The plain side knows nothing of shared prefixes, routing or cuts of the graph. Every example is one padded row: start,
patient, question, answer. Its LoRA has the rank of all experts together, and α is multiplied into its B.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from medfed.injection.batching import Draw
from medfed.injection.distil import DistillationBatch, distillation_batches
from medfed.injection.encode import encode_draws
from medfed.injection.experts import ADAPTER
from medfed.injection.inject import Injector
from medfed.injection.model import module_name
from medfed.llm.foundation import load_foundation
from medfed.llm.targets import target_modules
from medfed.study.foundation import HuggingFaceSettings
from support.llm_toys import BOTH, IMAGE, WORDY, examples, federated_model, settings, write_model

RANK, ALPHA = 2, 4
TASKS = (IMAGE, BOTH, WORDY)
SETS = {task.name: examples(task, 6, absent=0.0) for task in TASKS}
DRAWS = [Draw(task.name, position) for task in TASKS for position in range(6)]


@pytest.mark.parametrize("experts", [1, 3])
def test_a_step_through_a_qwen2_has_the_loss_and_the_gradients_of_peft(experts: int, tmp_path: Path) -> None:
    server = injector(write_model(tmp_path, "qwen2"), experts)
    plain = PlainStep(server, tmp_path, experts)
    wanted = plain.loss_and_gradients(batches(server))
    losses = server._backward(batches(server))
    found = {name: value.grad for name, value in server._params.items() if value.grad is not None}
    assert torch.cat(losses).mean().item() == pytest.approx(plain.loss, abs=1e-4)
    assert {"lora_A", "projectors", "encoders"} <= {
        part for name in found for part in ("lora_A", "projectors", "encoders") if part in name
    }
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4, msg=name)


def injector(folder: Path, experts: int) -> Injector:
    """An injector over the Qwen2 in ``folder``, with an adapter that is not the identity."""
    base = load_foundation(HuggingFaceSettings(dtype="float32"), cache=folder, path=folder)
    own = settings(num_experts=experts, rank=RANK, alpha=ALPHA, dropout=0.0, head_tokens=False, teacher_weight=0.0)
    server = Injector(base, federated_model(), TASKS, own, 0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in server.injected.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=0.2, generator=draws)
    return server


def batches(server: Injector) -> list[DistillationBatch]:
    """All examples with their labels, newly encoded."""
    groups = encode_draws(server._model, SETS, DRAWS, device="cpu", frozen=False)
    return distillation_batches(server._model, groups, server._settings)


class PlainStep:
    """The same step by transformers and PEFT, on a copy of the LLM; projectors, encoders and router are shared."""

    def __init__(self, server: Injector, folder: Path, experts: int) -> None:
        self.server, self.width = server, experts * RANK
        self.loss = 0.0
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        lora = LoraConfig(
            r=self.width, lora_alpha=self.width, target_modules=target_modules(model), task_type="CAUSAL_LM"
        )
        self.llm: PeftModel = get_peft_model(model, lora)
        self.ours = layers(server.injected.llm)
        self.theirs = layers(self.llm.base_model.model)
        assert self.ours.keys() == self.theirs.keys()

    def loss_and_gradients(self, batches: list[DistillationBatch]) -> dict[str, Tensor]:
        """Return the gradient of every trained tensor of the injector, by its name there; none is left in it."""
        injected, count = self.server.injected, sum(len(batch.target) for batch in batches)
        alpha = injected.alpha([batch.group.task for batch in batches])
        by_tensor: dict[str, Tensor] = {}
        pulls = torch.zeros_like(alpha)
        for row, batch in enumerate(batches):
            scales = (alpha[row].detach() * ALPHA / RANK).repeat_interleave(RANK)
            self._set(scales)
            loss = self._losses(batch).sum() / count
            loss.backward(retain_graph=True)  # the tasks share the encoders' graph
            self.loss += loss.item()
            for name, layer in self.theirs.items():
                down, up = layer.lora_A[ADAPTER].weight.grad, layer.lora_B[ADAPTER].weight.grad
                b = self.ours[name].lora_B[ADAPTER].weight.detach()
                for kind, gradient in (("lora_A", down), ("lora_B", up * scales)):
                    key = f"{name}.{kind}"
                    by_tensor[key] = by_tensor.get(key, torch.zeros(())) + gradient
                pulls[row] += (up * b).sum(0).view(-1, RANK).sum(1) * ALPHA / RANK
            self.llm.zero_grad()
        if alpha.requires_grad:
            alpha.backward(pulls)
        found: dict[str, Tensor] = {}
        for name, value in self.server._params.items():
            key = name.removeprefix("llm.").removesuffix(f".{ADAPTER}.weight")
            gradient = by_tensor.get(key, value.grad)
            if gradient is not None:
                found[name] = gradient.clone()
            value.grad = None
        return found

    def _set(self, scales: Tensor) -> None:
        with torch.no_grad():
            for name, layer in self.theirs.items():
                layer.lora_A[ADAPTER].weight.copy_(self.ours[name].lora_A[ADAPTER].weight)
                layer.lora_B[ADAPTER].weight.copy_(self.ours[name].lora_B[ADAPTER].weight * scales)

    def _losses(self, batch: DistillationBatch) -> Tensor:
        """Return the mean cross-entropy of the answer's tokens, per example."""
        injected, group = self.server.injected, batch.group
        tokenizer, embed = injected.foundation.tokenizer, self.llm.get_input_embeddings()
        answers = injected.prompt(group.task).answers
        start = embed(torch.tensor(list(tokenizer.starts), dtype=torch.long))
        question = embed(
            torch.tensor(tokenizer.encode(f" Question: {group.task.question}") + tokenizer.encode(" Answer:"))
        )
        patient = torch.cat([injected.projectors[module_name(m)](group.encoded[m]) for m in group.task.modalities], 1)
        chosen = [answers[number] for number in batch.target.argmax(-1).tolist()]
        rows = [
            torch.cat([start, own, question, embed(torch.tensor(answer))])
            for own, answer in zip(patient, chosen, strict=True)
        ]
        longest = max(map(len, rows))
        inputs = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
        mask = torch.stack([F.pad(torch.ones(len(row), dtype=torch.long), (0, longest - len(row))) for row in rows])
        logits = self.llm(inputs_embeds=inputs, attention_mask=mask).logits
        losses = []
        for scores, row, answer in zip(logits, rows, chosen, strict=True):
            read = scores[len(row) - len(answer) - 1 : len(row) - 1]
            losses.append(F.cross_entropy(read, torch.tensor(answer)))
        return torch.stack(losses)


def layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    """The layers with an adapter, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
