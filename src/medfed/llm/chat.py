"""The form in which an instruct LLM was taught to be asked: its chat template, and where its turn ends.

An LLM without a template is asked in plain text, as ``Question: … Answer:``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from medfed.llm.prompt import TextTokenizer

PLAIN = "{system}Question: {question}\nAnswer:"


@runtime_checkable
class ChatTokenizer(TextTokenizer, Protocol):
    """A tokenizer that knows its LLM's chat template.

    Attributes:
        starts: ids that the tokenizer itself puts before a text.
        ends: ids that end an answer.
        has_template: whether the LLM has a chat template.
    """

    starts: tuple[int, ...]
    ends: frozenset[int]
    has_template: bool

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of a conversation, up to the beginning of the answer."""
        ...


@dataclass(frozen=True)
class Form:
    """How a question is put.

    Attributes:
        system: the text before the conversation; None takes what the template itself puts there.
        lead: words with which the answer begins.
    """

    system: str | None = None
    lead: str = ""

    def prompt(self, question: str, tokenizer: ChatTokenizer) -> tuple[int, ...]:
        """Return the ids of a prompt that asks ``question``."""
        if not tokenizer.has_template:
            text = PLAIN.format(system=f"{self.system}\n" if self.system else "", question=question)
            return (*tokenizer.starts, *tokenizer.encode(text + (f" {self.lead}" if self.lead else "")))
        messages = [{"role": "user", "content": question}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return (*tokenizer.chat(messages), *tokenizer.encode(self.lead))

    def answer(self, text: str, tokenizer: ChatTokenizer) -> tuple[int, ...]:
        """Return the ids of an answer as it follows a prompt: a space comes before it only in plain text or a lead."""
        spaced = self.lead or not tokenizer.has_template
        return tuple(tokenizer.encode(f" {text}" if spaced else text))
