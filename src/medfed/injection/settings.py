"""The settings of injection."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from medfed.injection.projector import ProjectorKind
from medfed.injection.prompt import Order
from medfed.injection.router import RouterSettings


class InjectionSettings(BaseModel):
    """How the server injects, under the paper's names where it has any.

    Attributes:
        lr: server learning rate of projectors and experts.
        router_lr: of the router. Much larger rates send every task to one expert within a round.
        encoder_lr: of the encoders; null takes ``lr`` (the paper's way), 0 leaves them as aggregated.
        num_epochs: passes over the public data per round.
        batch_size: examples per step, tasks mixed.
        num_experts: P; 1 is one plain LoRA without a router (FedPlug_L), 0 none at all (FedPlug).
        rank: r of one expert.
        alpha: a; an expert's output is scaled by a/r.
        dropout: on the experts' input.
        projector: ``linear`` (the paper's) or ``mlp``.
        router: how the router reads descriptions.
        routing_weight: reward for routing tasks differently (mutual information); 0 is the paper, and does not route.
        order: ``modality_first`` (the paper's) or ``task_first``.
        balance_tasks: every task gives the same number of examples.
        balance_classes: every class of a task gives the same number of examples.
        keep_optimizer_state: moments live on from round to round.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; null for no limit.
        device: where the LLM runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(default=5e-4, gt=0)
    router_lr: float = Field(default=1e-3, gt=0)
    encoder_lr: float | None = Field(default=None, ge=0)
    num_epochs: int = Field(default=2, gt=0)
    batch_size: int = Field(default=16, gt=0)
    num_experts: int = Field(default=12, ge=0)
    rank: int = Field(default=8, gt=0)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    projector: ProjectorKind = "linear"
    router: RouterSettings = RouterSettings()
    routing_weight: float = Field(default=0.05, ge=0)
    order: Order = "modality_first"
    balance_tasks: bool = True
    balance_classes: bool = True
    keep_optimizer_state: bool = True
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    device: str = "cpu"
