"""Experts find their places by structure: also in a model that nobody named."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medfed.injection.experts import add_experts
from medfed.llm.targets import projections, target_modules
from medfed.study.injection import InjectionSettings

WIDTH = 8


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fall(self.rise(x).relu())


class Bank(nn.Module):
    """Experts of the model's own, with the linear map that chooses among them."""

    def __init__(self) -> None:
        super().__init__()
        self.chooser = nn.Linear(WIDTH, 3)
        self.several = nn.ModuleList(Expert() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        said = torch.stack([part(x) for part in self.several], -1)
        return (said * self.chooser(x).softmax(-1).unsqueeze(-2)).sum(-1)


class Fused(nn.Module):
    """Experts as one tensor, and a choosing map beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.chooser = nn.Linear(WIDTH, 3)
        self.together = nn.Module()
        self.together.weight = nn.Parameter(torch.zeros(3, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bpw,ewv,bpe->bpv", x, self.together.weight, self.chooser(x).softmax(-1))


class Layer(nn.Module):
    def __init__(self, feed: nn.Module) -> None:
        super().__init__()
        self.mingle = nn.Linear(WIDTH, WIDTH, bias=False)
        self.plain = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.feed = feed

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed(x + self.plain(self.mingle(x)))


class Odd(nn.Module):
    """Names that no list has, a tower with one of them, a linear map before the layers and a head in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.storeys = nn.ModuleList([Layer(Bank()), Layer(Fused())])
        self.exit = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 20))


class WithTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.ModuleList([nn.ModuleDict({"mingle": nn.Linear(4, 4), "rest": nn.Linear(4, 4)})])
        self.text = Odd()

    prepare_inputs_for_generation = None
    """PEFT looks for it in a causal LM."""

    def get_decoder(self) -> nn.Module:
        return self.text

    def get_input_embeddings(self) -> nn.Module:
        return self.text.words

    def get_output_embeddings(self) -> nn.Module:
        return self.text.exit[1]


PLACES = {f"text.storeys.{n}.{name}" for n in (0, 1) for name in ("mingle", "plain.0", "plain.2")}
PLACES |= {f"text.storeys.0.feed.several.{n}.{name}" for n in (0, 1, 2) for name in ("rise", "fall")}


def test_linear_maps_of_the_layers_and_no_others_are_found() -> None:
    assert set(projections(WithTower())) == PLACES


def test_peft_adapts_exactly_those() -> None:
    model = WithTower()
    names = target_modules(model)
    assert "rise" in names, "a leaf name where nothing else has it"
    assert "mingle" not in names, "the tower has it too"
    add_experts(model, InjectionSettings(num_experts=3, rank=2, alpha=4, dropout=0.0))
    adapted = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert adapted == PLACES
