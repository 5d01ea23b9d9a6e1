"""Knowledge that the injected LLM keeps: examinations without patients before, between and after injections.

Their questions are put in two forms: plain chat form, and the form that was trained, without modality tokens. An LLM
with a chat template is trained in it, so that its two forms are one. The experts are mixed evenly. An examination has
no task or modality description to route by, and trained mixtures lie around the even one. A single LoRA has weight 1.

The encoders take no part. So an injection starts from the LLM that the one before it left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medfed.evaluation.score import score_run
from medfed.injection.model import InjectedModel
from medfed.llm.chat import Form
from medfed.llm.knowledge import Chosen, TaskPredictions, answers_of, table_of
from medfed.llm.language_model import LanguageModel
from medfed.llm.prompt import TextTokenizer, build_prompt
from medfed.records.schema import Retained, ScoreFile
from medfed.study.evaluation import EvaluationSettings, RetentionSettings
from medfed.study.injection import Order

BEFORE, AFTER = "before", "after"
"""The LLM in scores: as it was, and as the last injection left it; between them ``after-round-3``."""
FORMS = {"chat": "chat form", "trained": "trained form"}
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class _Question:
    name: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TrainedForm(Form):
    """The form of the prompts that are trained, without modality tokens."""

    order: Order = "modality_first"

    def prompt(self, question: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
        """Return the ids of a prompt that asks ``question``."""
        made = build_prompt(_Question("examination", question, ("Yes",)), tokenizer, self.order)
        lead = tokenizer.encode(self.lead if tokenizer.has_template else f" {self.lead}") if self.lead else ()
        return (*made.before, *made.after, *lead)

    def answer(self, text: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
        """Return the ids of an answer; without a lead it ends its turn where the LLM has turns."""
        if self.lead:
            return tuple(tokenizer.encode(f" {text}"))
        return build_prompt(_Question("examination", "", (text,)), tokenizer, self.order).answers[0]


def forms_of(tokenizer: TextTokenizer, order: Order) -> dict[str, Form]:
    """Return the forms that put a question in different tokens, chat form first."""
    forms = {"chat": Form(), "trained": TrainedForm(order=order)}
    return {"chat": forms["chat"]} if tokenizer.has_template else forms


class Retention:
    """Asks the LLM of a run the same questions again and again.

    Args:
        injected: the LLM with its adapters.
        chosen: the questions.
        settings: when they are put.
        cache: folder in which the frozen LLM's likelihoods are kept.
    """

    def __init__(
        self, injected: InjectedModel, chosen: Sequence[Chosen], settings: RetentionSettings, cache: Path | None = None
    ) -> None:
        self._injected, self._chosen, self._settings, self._cache = injected, chosen, settings, cache
        self._forms = forms_of(injected.foundation.tokenizer, injected.settings.order)

    def due(self, round_number: int, num_rounds: int) -> bool:
        """Return whether the LLM is examined after a round."""
        every = self._settings.every
        return bool(self._chosen) and (round_number in (0, num_rounds) or (every > 0 and round_number % every == 0))

    @torch.no_grad()
    def look(self, round_number: int, advance: Advance = lambda done, total: None) -> list[Retained]:
        """Put all questions; round 0 is the frozen LLM. Nothing is random, and no weight changes."""
        injected, work = self._injected, [(form, chosen) for form in self._forms for chosen in self._chosen]
        training = injected.training
        lines = []
        try:
            injected.eval()
            with injected.mixing(injected.even()):
                for number, (form, (examination, questions)) in enumerate(work):
                    advance(number, len(work))
                    responses = answers_of(self._model(form, frozen=not round_number), examination, questions)
                    lines.append(
                        Retained(
                            round=round_number, examination=examination.name, form=form, responses=tuple(responses)
                        )
                    )
        finally:
            injected.train(training)
        return lines

    def tasks(self, lines: Sequence[Retained]) -> list[TaskPredictions]:
        """Return all looks as tasks without patients, a model per look."""
        last, tasks = max((line.round for line in lines), default=0), []
        for form in self._forms:
            for examination, questions in self._chosen:
                mine = [line for line in lines if (line.examination, line.form) == (examination.name, form)]
                looks = {model_name(line.round, last): line.responses for line in mine}
                _, facts, table = table_of(examination, questions, looks)
                title = f"{examination.title}; {FORMS[form]}"
                tasks.append((f"knowledge-{examination.name}-{form}", facts.model_copy(update={"title": title}), table))
        return tasks

    def _model(self, form: str, *, frozen: bool) -> LanguageModel:
        foundation = self._injected.foundation
        if frozen:
            return LanguageModel(foundation, form=self._forms[form], cache=self._cache)
        return LanguageModel(foundation, form=self._forms[form], llm=self._injected.llm)


def model_name(round_number: int, last: int) -> str:
    """Return the name in scores of the LLM after a round."""
    return BEFORE if not round_number else AFTER if round_number == last else f"{AFTER}-round-{round_number}"


def score_retention(tasks: Sequence[TaskPredictions], seed: int, settings: EvaluationSettings) -> ScoreFile:
    """Score the looks; every later one is compared with the first, question by question."""
    later = dict.fromkeys(model for _, _, lines in tasks for model in lines[0].responses if model != BEFORE)
    compared = settings.model_copy(update={"comparisons": tuple((model, BEFORE) for model in later)})
    return score_run(tasks, seed, compared)
