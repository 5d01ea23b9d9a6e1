"""The values that travel between the parts, and the legend of axis names.

Axis names used in shapes: ``batch`` examples; ``tokens`` positions an encoder emits per example; ``dim`` its width.
Of the LLM: ``width`` its hidden size; ``position`` places in its input; ``expert`` = P; ``rank`` = r. Of samples:
``lead`` × ``time`` an ECG; ``hour`` × ``channel`` an ICU series; ``row`` × ``column`` an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

__all__ = ["Batch", "Broadcast", "Failure", "Params", "Update", "component"]

Params = Mapping[str, Tensor]
"""Named tensors: parameters, buffers, control variates, …"""


@dataclass(frozen=True)
class Batch:
    """Examples of one task.

    Attributes:
        inputs: modality → normalised samples; zeros where the modality is absent.
        present: modality → whether the example has it. This mask says what is absent, never zeros alone.
        target: the truth in the form of the task's loss: a class index, a row of labels, the ids of an answer, a
            mask. The class index is −1 where an open question has another answer.
        questions: question of every example; empty where the task has one for all.
    """

    inputs: Mapping[str, Float[Tensor, "batch *sample"]]
    present: Mapping[str, Bool[Tensor, " batch"]]
    target: Shaped[Tensor, "batch *target"]
    examples: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @classmethod
    def unanswered(
        cls,
        samples: Sequence[Mapping[str, Shaped[np.ndarray, "..."]]],
        shapes: Mapping[str, tuple[int, ...]],
        questions: tuple[str, ...] = (),
    ) -> Batch:
        """Return examples whose answer is unknown (target 0), from every example's normalised samples by modality. A
        modality may be absent; ``shapes`` has one sample's shape for every modality of the batch."""
        inputs, present = {}, {}
        for name, shape in shapes.items():
            absent = np.zeros(shape, np.float32)
            inputs[name] = torch.from_numpy(np.stack([sample.get(name, absent) for sample in samples]))
            present[name] = torch.tensor([name in sample for sample in samples])
        return cls(inputs, present, torch.zeros(len(samples), dtype=torch.long), questions=questions)

    def __len__(self) -> int:
        return int(self.target.shape[0])

    def row(self, number: int) -> Batch:
        """Return one example as a batch."""
        one = slice(number, number + 1)
        cut = self._changed(lambda value: value[one])
        return replace(cut, examples=self.examples[one], questions=self.questions[one])

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return self._changed(lambda value: value.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: change(value) for name, value in self.inputs.items()}
        present = {name: change(value) for name, value in self.present.items()}
        return replace(self, inputs=inputs, present=present, target=change(self.target))


@dataclass(frozen=True)
class Broadcast:
    """The server's message to a client at the start of a round, counted from 1.

    Attributes:
        base: fingerprint of ``params`` and ``buffers``; an update must name the base it started from.
        buffers: global buffers (normalisation statistics), replaced, never differenced.
        state: the algorithm's own tensors (a control variate, say).
    """

    round: int
    base: str
    params: Params
    buffers: Params = field(default_factory=dict)
    state: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """A client's answer.

    Attributes:
        base: fingerprint of the model it started from.
        delta: local minus global parameters, float32, same names and shapes as the broadcast's ``params``; rounded to
            ``rounds.upload_dtype`` until the server has restored it.
        buffers: local buffers after training.
        scales: of a change rounded to int8, tensor → ``[row]`` what one step is worth.
        num_examples: private training examples seen, over all tasks; apart from ``num_steps`` on purpose.
        examples: component ("encoders.image", "heads.cd") → examples whose loss reached it. A component the client
            has no data for has no weight in the mean of its tensors.
        metrics: numbers for the log (loss per task).
    """

    client: str
    round: int
    base: str
    delta: Params
    num_examples: int
    num_steps: int
    buffers: Params = field(default_factory=dict)
    state: Params = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    scales: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A client that gave no usable update this round: who, in which phase ("train", "gate", "exchange", …), and why."""

    client: str
    round: int
    phase: str
    reason: str


def component(tensor: str) -> str:
    """Return the component a tensor belongs to: ``encoders.image.blocks.0.weight`` → ``encoders.image``."""
    return ".".join(tensor.split(".")[:2])
