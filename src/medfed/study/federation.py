"""Settings of a federation: how clients train, how many rounds, who takes part."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medfed.study.parts import SettingsModel


class ClientSettings(SettingsModel):
    """How every client trains."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # `adam`, `adamw` (decoupled decay) or `sgd`
    lr: float = Field(default=1e-4, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)  # of `sgd` only
    weight_decay: float = Field(default=0.0, ge=0)  # L2 for `adam` and `sgd`, decoupled for `adamw`
    batch_size: int = Field(default=32, gt=0)  # examples per task and step
    local_epochs: int = Field(default=1, gt=0)  # passes over the largest task's examples; smaller tasks repeat
    local_steps: int | None = Field(default=None, gt=0)  # optimizer steps a round, in place of `local_epochs`
    max_grad_norm: float | None = Field(default=None, gt=0)  # gradients are scaled down to this norm; null for no limit
    reset_optimizer: bool = True  # start every round with fresh slots
    # `bfloat16` runs forward and loss under autocast. Weights, gradients and what travels stay in float32, and bfloat16
    # has float32's range, so no loss is scaled and no algorithm sees scaled gradients.
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"  # where training runs

    @model_validator(mode="after")
    def _check_momentum(self) -> ClientSettings:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum={self.momentum} is for optimizer='sgd'; {self.optimizer} has its own moments")
        return self


UploadDtype = Literal["float32", "bfloat16", "int8"]
"""How a change travels; ``float32`` sends it as it was computed (in float64 where the weights are)."""


class RoundSettings(SettingsModel):
    """How many rounds, and who takes part."""

    num_rounds: int = Field(default=10, gt=0)  # rounds in all
    participation: float = Field(default=1.0, gt=0, le=1)  # share of the clients sampled every round; at least one is
    clients_per_round: int | None = Field(default=None, gt=0)  # number of clients in place of `participation`
    min_clients: int = Field(default=1, gt=0)  # usable updates without which a round, and with it the run, has failed
    # how clients send the change of their weights: `float32`, `bfloat16` (half the bytes) or `int8` with a scale per
    # row (a quarter). The log has the error of the mean update.
    upload_dtype: UploadDtype = "float32"
