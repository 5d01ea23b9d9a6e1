"""FedKIM by hand (Wang et al. 2024, Eq. 1 to 5), flat: two hospitals, two tasks, two rounds. It equals the library.

The equations are as printed (``recipe = "paper"``), and the LLM answers one example at a time. The largest difference
of any trained weight from the library's is printed, and a test keeps it under 5e-6.
"""

from __future__ import annotations

import copy
import zlib
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from medfed.core.catalog import ENCODERS, MODALITIES, TASKS
from medfed.core.rng import numpy_rng
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Params
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_round
from medfed.federated.state import FederatedState, load_weights, split, weights_of
from medfed.injection.batching import epoch_order
from medfed.injection.inject import Injector
from medfed.llm.foundation import Foundation
from medfed.models.multimodal import MultimodalModel
from medfed.study.algorithms import FedAvg
from medfed.study.federation import ClientSettings, RoundSettings
from medfed.study.injection import InjectionSettings
from medfed.tasks.base import Task, TaskSet

SEED, ROUNDS, LR, SIZES, EXPERTS, RANK = 0, 2, 0.05, {"north": 12, "south": 18}, 3, 2
TASK = {name: TASKS[name] for name in ("cd", "pneumonia")}
SETTINGS = InjectionSettings(recipe="paper", num_experts=EXPERTS, rank=RANK, dropout=0.0, batch_size=8)
CODE = lambda text: [2 + zlib.crc32(word.encode()) % 90 for word in text.split()]  # noqa: E731
MEAN, WORDS = FedAvg(weighting="clients"), SimpleNamespace(starts=(0,), eos=1, has_template=False, encode=CODE)


def examples(task: str, place: str, size: int) -> TaskSet:
    """Return images with a bright corner where the answer is yes."""
    rng = numpy_rng(task, place)
    targets = rng.integers(0, 2, size)
    images = rng.normal(size=(size, 1, 64, 64)).astype(np.float32) + targets[:, None, None, None]
    return TaskSet.from_arrays(TASK[task], {"image": images}, targets, place)


def start() -> tuple[MultimodalModel, Foundation, dict[str, dict[str, TaskSet]], dict[str, TaskSet]]:
    """Return model, frozen LLM, private sets by hospital and public sets: the same for both ways."""
    with torch_seeded(SEED):
        spec = ENCODERS["vit-mini"].model_validate({"dim": 8, "num_layers": 1, "num_heads": 2, "patch_size": 32})
        model = MultimodalModel({"image": spec}, {"image": MODALITIES["image"]}, tuple(TASK.values()))
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=92, **sizes))
    held = {place: {task: examples(task, place, n) for task in TASK} for place, n in {**SIZES, "server": 10}.items()}
    return model, Foundation("words", llm, WORDS, {}), held, held.pop("server")


def train_client(model: nn.Module, tasks: dict[str, TaskSet], place: str, number: int) -> nn.Module:
    """Eq. 1 and 2: one epoch of SGD on the mean of the task losses, in batches of 6."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    key = (SEED, place, number, "train", 0)
    orders = {name: numpy_rng(*key, name, "batches").permutation(SIZES[place]) for name in tasks}
    for begin in range(0, SIZES[place], 6):
        batches = {name: held.batch(orders[name][begin : begin + 6]) for name, held in tasks.items()}
        losses = [F.cross_entropy(model(TASK[name], batch), batch.target) for name, batch in batches.items()]
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        optimizer.step()
    return model


def answer_loss(params: Params, base: Foundation, task: Task, tokens: Tensor, target: int) -> Tensor:
    """Steps 1 to 3 for one example: h = [g(e); p], α of Eq. 4, experts of Eq. 5, cross-entropy of the answer."""
    llm, text = base.model, base.tokenizer
    router = {name.split(".router.default.")[1]: value for name, value in params.items() if ".router." in name}
    described = map(text.encode, (task.modality_description, task.task_description))
    about_modality, about_task = map(base.embed, described)
    query = about_modality @ router["query.weight"].T
    key, value = about_task @ router["key.weight"].T, about_task @ router["value.weight"].T
    pooled = (query @ key.T / 64**0.5 @ value).mean(0)
    hidden = F.gelu(pooled @ router["mlp.0.weight"].T + router["mlp.0.bias"])
    alpha = (hidden @ router["mlp.2.weight"].T + router["mlp.2.bias"]).softmax(-1)

    def experts(layer: str, h: Tensor) -> Tensor:
        a, b = (params[f"llm.{layer}.lora_{side}.default.weight"].split(RANK, int(side == "B")) for side in "AB")
        return sum(alpha[p] * (h @ a[p].T @ b[p].T) for p in range(EXPERTS))

    adapted = {name: layer for name, layer in llm.named_modules() if f"llm.{name}.lora_A.default.weight" in params}
    hooks = [m.register_forward_hook(lambda _, h, out, n=n: out + experts(n, h[0])) for n, m in adapted.items()]
    aligned = tokens @ params["projectors.image.layers.0.weight"].T + params["projectors.image.layers.0.bias"]
    prompt = base.embed(text.encode(f" Question: {task.question} Answer:"))
    logits = llm(inputs_embeds=torch.cat([base.embed(text.starts), aligned, prompt])[None]).logits[0, -1]
    _ = [hook.remove() for hook in hooks]
    return F.cross_entropy(logits[None], torch.tensor([text.encode(task.answers[target])[0]]))


def by_hand() -> dict[str, Tensor]:
    """Run FedKIM without the library's federated and injection parts; only the initial values are taken from it."""
    model, foundation, private, public = start()
    initial = split(Injector(foundation, copy.deepcopy(model), (), SETTINGS, SEED).state(), ("params", "slots"))
    params = {name: value.requires_grad_() for name, value in initial["params"].items()}
    trained = [*params.values(), *model.encoders.parameters()]
    classes = {name: held.targets.numpy() for name, held in public.items()}
    optimizer = torch.optim.AdamW(trained, SETTINGS.lr, weight_decay=SETTINGS.weight_decay)
    for number in range(1, ROUNDS + 1):
        locals_ = [train_client(model, held, place, number) for place, held in sorted(private.items())]
        with torch.no_grad():  # Eq. 3, f_avg: the plain mean
            for name, value in model.named_parameters():
                value.copy_(sum(dict(local.named_parameters())[name].double() for local in locals_) / len(locals_))
        order = epoch_order(classes, numpy_rng(SEED, "inject", number, 0), balance_tasks=False, balance_classes=False)
        for begin in range(0, len(order), SETTINGS.batch_size):
            drawn = [(TASK[task], public[task].batch(np.array([i]))) for task, i in order[begin : begin + 8]]
            items = [(task, model.tokens("image", one.inputs["image"])[0], int(one.target)) for task, one in drawn]
            torch.stack([answer_loss(params, foundation, *item) for item in items]).mean().backward()
            nn.utils.clip_grad_norm_(trained, SETTINGS.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach() for name, value in {**params, **dict(model.named_parameters())}.items()}


def by_library() -> dict[str, Tensor]:
    """Run the same with the library."""
    model, foundation, private, public = start()
    injector = Injector(foundation, model, tuple(TASK.values()), SETTINGS, SEED)
    trainer = Trainer(copy.deepcopy(model), MEAN, ClientSettings(optimizer="sgd", lr=LR, batch_size=6), SEED)
    exchange = InProcessExchange([Client(place, held) for place, held in private.items()], trainer)
    state = initial_state(model, MEAN)
    for number in range(1, ROUNDS + 1):
        state = run_round(state, exchange, MEAN, Federation(exchange.registered, SEED), RoundSettings()).state
        load_weights(model, state.weights)
        list(injector.inject(public, number))
        state = FederatedState(number, *weights_of(model))
    return {**split(injector.state(), ("params", "slots"))["params"], **state.params}


def largest_difference() -> float:
    """Return the largest absolute difference of any trained weight."""
    one, other = by_hand(), by_library()
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


if __name__ == "__main__":
    print(f"largest difference between FedKIM by hand and by library: {largest_difference():.1e}")
