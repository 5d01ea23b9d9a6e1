"""The settings of injection, and its three recipes: ``medfed``, the default, ``paper`` and ``released``.

- ``medfed`` is measured in docs/results.md. It is the class's own defaults.
- ``paper`` is FedKIM as printed (Wang et al. 2024, Eq. 4 and 5, Sec. 3.5). Fields that the paper leaves open stay
  medfed's.
- ``released`` is FedKIM as the authors' code computes it, but for the code's faults. docs/decisions/injection.md lists
  the differences that were taken and refused.

Both take the plain mean over clients too (:func:`medfed.study.algorithms.plain_mean`).

Deviation: by default the aggregated heads answer the public examples, and the LLM learns these answers (Hinton et al.
2015). Their outputs are also tokens of its prompt. Encoders and heads learn the public labels through the heads. FedKIM
trains encoders and LLM together on the labels alone; ``paper`` restores that.
Deviation: closed answers are compared by likelihood and open ones decoded greedily in all recipes. The optimizer is
AdamW with clipping in all of them: the paper names none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from medfed.study.parts import SettingsModel

TINY_LR, TINY_WIDTH, WARMUP = 1e-3, 128, 0.05
"""The learning rate that was measured with the tiny LLM, that LLM's hidden size, and the warm-up of larger ones."""
TINY_DROPOUT = 0.1
"""Of the tiny LLM. An LLM from disk is trained a few hundred steps, and dropout costs a tenth of each."""
Recipe = Literal["medfed", "paper", "released"]
PAPER: Mapping[str, Any] = {
    "lr": 5e-4,
    "warmup": 0.0,
    "router_lr": 5e-4,
    "encoder_lr": None,
    "public_lr": 0.0,
    "teacher_weight": 0.0,
    "head_tokens": False,
    "answer_calibration": False,
    "routing_weight": 0.0,
    "num_epochs": 1,
    "balance_tasks": False,
    "balance_classes": False,
    "dropout": 0.1,
    "router": {"attention": "linear", "normalise_embeddings": False},
}
"""The fields of ``recipe = "paper"``; its ``alpha`` is the rank, so that Eq. 5 has no factor."""
RELEASED: Mapping[str, Any] = {
    **PAPER,
    "warmup": 0.1,
    "weight_decay": 1e-4,
    "beta_2": 0.95,
    "router": {"attention": "softmax", "normalise_embeddings": False, "key_dim": 0, "hidden_dim": 0},
}
"""The fields of ``recipe = "released"``, with the same ``alpha``."""
RECIPES: Mapping[str, Mapping[str, Any]] = {"medfed": {}, "paper": PAPER, "released": RELEASED}
"""Recipe → the fields that it sets; those that a study gives stay as given."""
Order = Literal["modality_first", "task_first"]
ProjectorKind = Literal["linear", "mlp"]


class RouterSettings(SettingsModel):
    """How the router reads descriptions."""

    key_dim: int = Field(default=64, ge=0)  # d_k, the width of queries, keys and values; 0 takes the LLM's
    hidden_dim: int = Field(default=64, ge=0)  # width of the MLP's hidden layer; 0 is one linear layer
    attention: Literal["softmax", "linear"] = "softmax"  # `linear` as Eq. 4 is printed
    normalise_embeddings: bool = True  # RMS-normalise the token embeddings
    use_task_description: bool = True  # off is the ablation FedKIM_T: the modality description attends to itself
    use_modality_description: bool = True  # off is the ablation FedKIM_M: the task description attends to itself

    @model_validator(mode="after")
    def _reads_something(self) -> RouterSettings:
        if not (self.use_task_description or self.use_modality_description):
            raise ValueError("a router that reads neither description cannot route; use num_experts=1 for a plain LoRA")
        return self


class RehearsalSettings(SettingsModel):
    """Medical texts that the LLM reads in every step, so that it forgets less (for the KL too)."""

    weight: float = Field(default=0.0, ge=0)  # of their tokens' mean negative log-likelihood in the loss
    texts: str | None = None  # folder of *.txt and *.xml files; null takes the package's reference text
    num_texts: int = Field(default=4, gt=0)  # pieces of text per step
    max_length: int = Field(default=48, ge=2)  # tokens of a piece
    # of answers in words in the loss: open questions about a step's examples, which the frozen LLM answers without them
    question_weight: float = Field(default=0.0, ge=0)
    num_questions: int = Field(default=4, gt=0)  # such questions per step


class InjectionSettings(SettingsModel):
    """How the server injects, under the paper's names where it has any."""

    # defaults of the other fields: `medfed`, `paper` (FedKIM as printed) or `released` (the authors' code)
    recipe: Recipe = "medfed"
    # server learning rate of projectors and experts; null is 1e-3 for the tiny LLM, and for one from disk
    # 1e-3 · √(128 / its hidden size): 4.7e-4 for 576, 2.9e-4 for 1536, 1.8e-4 for 4096
    lr: float | None = Field(default=None, gt=0)
    # share of all injection steps over which the rates rise from 0; null is 0 for the tiny LLM, 0.05 for one from disk
    warmup: float | None = Field(default=None, ge=0, lt=1)
    router_lr: float = Field(default=1e-3, gt=0)  # much larger rates send every task to one expert within a round
    encoder_lr: float | None = Field(default=0.0, ge=0)  # of the LLM's loss; null takes `lr` (the paper's way)
    # of the server's own pass over the public labels, before a round's injection, which trains encoders and heads as a
    # client would; 0 leaves them as aggregated (the paper's way)
    public_lr: float = Field(default=1e-4, ge=0)
    # share of the examples whose target is the aggregated heads' probabilities, not the label; 0 is the paper's way
    teacher_weight: float = Field(default=1.0, ge=0, le=1)
    teacher_mixing: bool = True  # such an example is a random mixture of the encoder tokens of two, judged anew
    # share of such examples with the question of another trained task on the same modalities
    teacher_crossing: float = Field(default=0.5, ge=0, le=1)
    head_tokens: bool = True  # the outputs of the aggregated heads are tokens of the prompt, one per head
    align_rounds: int = Field(default=0, ge=0)  # in the first rounds only the projectors learn
    # centre the log-likelihoods of the answers to an untrained closed question on the public examples with the same
    # modalities. No label is used. Yes against no keeps its ranking, but half the examples are then called positive.
    # This suits balanced accuracy, not the probabilities of a rare finding.
    answer_calibration: bool = True
    # `every` injects after every round (FedKIM); `last` once, after the last one: before it, the federation runs alone
    schedule: Literal["every", "last"] = "every"
    num_epochs: int = Field(default=2, gt=0)  # passes over the public data per round
    batch_size: int = Field(default=16, gt=0)  # examples per step, tasks mixed
    num_experts: int = Field(default=12, ge=0)  # P; 1 is a plain LoRA without a router (FedPlug_L), 0 none (FedPlug)
    rank: int = Field(default=8, gt=0)  # r of one expert
    alpha: int = Field(default=16, gt=0)  # a; an expert's output is scaled by a/r, in the paper by 1
    # on the experts' input; null is 0.1 (FedKIM's) for the tiny LLM and 0 for one from disk
    dropout: float | None = Field(default=None, ge=0, lt=1)
    projector: ProjectorKind = "linear"  # `linear` (the paper's) or `mlp`
    router: RouterSettings = RouterSettings()  # how the router reads descriptions
    # reward for routing tasks differently (mutual information); 0 is the paper, whose router hardly tells tasks apart
    routing_weight: float = Field(default=0.0, ge=0)
    order: Order = "modality_first"  # `modality_first` (the paper's) or `task_first`
    balance_tasks: bool = True  # every task gives the same number of examples
    balance_classes: bool = True  # every class of a task gives the same number of examples
    keep_optimizer_state: bool = True  # moments live on from round to round
    weight_decay: float = Field(default=0.01, ge=0)  # of AdamW
    beta_2: float = Field(default=0.999, ge=0, lt=1)  # decay of AdamW's second moment
    max_grad_norm: float | None = Field(default=1.0, gt=0)  # gradients are scaled down to this norm; null for no limit
    rehearsal: RehearsalSettings = RehearsalSettings()  # texts against forgetting; nothing of it is FedKIM's
    # of KL(frozen LLM ‖ adapted LLM), the mean over the next tokens of the rehearsed texts, in the loss
    kl_weight: float = Field(default=0.0, ge=0)
    device: str = "cpu"  # where the LLM runs

    def for_llm(self, width: int, *, from_disk: bool) -> InjectionSettings:
        """Return the settings with rate, warm-up and dropout of an LLM of hidden size ``width`` where none is given.

        The tiny LLM keeps what was measured with it. Adam moves every weight by about the rate, and a layer's output
        adds up ``width`` such moves. Random moves then grow with the root of the width, equal ones with the width. The
        root is taken; it has not been measured against other rules.
        """
        usual = {"lr": TINY_LR, "warmup": 0.0, "dropout": TINY_DROPOUT}
        if from_disk:
            usual = {"lr": TINY_LR * (TINY_WIDTH / width) ** 0.5, "warmup": WARMUP, "dropout": 0.0}
        return self.model_copy(update={name: value for name, value in usual.items() if getattr(self, name) is None})

    @model_validator(mode="after")
    def _aligns_before_it_injects(self) -> InjectionSettings:
        if self.schedule == "last" and self.align_rounds:
            raise ValueError('schedule = "last" injects once, so no round is left to align in; leave align_rounds at 0')
        return self

    @property
    def rehearses(self) -> bool:
        """Whether the LLM reads texts in every step."""
        return self.rehearsal.weight > 0 or self.kl_weight > 0

    @property
    def keeps_words(self) -> bool:
        """Whether the LLM answers open questions in every step."""
        return self.rehearsal.question_weight > 0

    @model_validator(mode="after")
    def _something_rehearses(self) -> InjectionSettings:
        if (self.rehearses or self.keeps_words) and not self.num_experts:
            raise ValueError("rehearsal and KL need experts: without them the LLM itself does not change")
        return self

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        if (name := given.get("recipe", "medfed")) == "default":
            raise ValueError('the recipe "default" is called "medfed" now\n  next step: write recipe = "medfed"')
        preset = dict(RECIPES.get(name, {})) if isinstance(name, str) else {}
        if not preset:
            return given
        router = given.get("router", {})
        if isinstance(router, RouterSettings):
            router = router.model_dump(exclude_unset=True)
        whole = {**preset["router"], **router} if isinstance(router, Mapping) else router
        rank = given.get("rank", cls.model_fields["rank"].default)
        return {**preset, "alpha": rank, **given, "router": whole}
