"""The form of questions to an LLM alone: its chat template, or ``Question: … Answer:`` where it has none."""

from __future__ import annotations

from dataclasses import dataclass

from medfed.llm.prompt import TextTokenizer

PLAIN = "{system}Question: {question}\nAnswer:"


@dataclass(frozen=True)
class Form:
    """How a question is put.

    Attributes:
        system: the text before the conversation; None takes what the template itself puts there.
        lead: words with which the answer begins.
    """

    system: str | None = None
    lead: str = ""

    def prompt(self, question: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
        """Return the ids of a prompt that asks ``question``."""
        if not tokenizer.has_template:
            text = PLAIN.format(system=f"{self.system}\n" if self.system else "", question=question)
            return (*tokenizer.starts, *tokenizer.encode(text + (f" {self.lead}" if self.lead else "")))
        turns = tokenizer.turns(self.system)
        return (*turns.opening, *tokenizer.encode(question), *turns.between, *tokenizer.encode(self.lead))

    def answer(self, text: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
        """Return the ids of an answer as it follows a prompt: a space comes before it only in plain text or a lead."""
        spaced = self.lead or not tokenizer.has_template
        return tuple(tokenizer.encode(f" {text}" if spaced else text))
