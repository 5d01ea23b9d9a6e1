"""Tokenizers of three families with the chat form that each was taught."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from support.llm_toys import fast_tokenizer


class Family(NamedTuple):
    """A chat form: its special tokens and its template."""

    special: tuple[str, ...]
    template: str
    adds_start: bool


CHATML = """{%- if messages[0].role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA = """{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
GEMMA = """{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}
{{ message.content }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
FAMILIES = {
    "qwen2": Family(("<|im_start|>", "<|im_end|>"), CHATML, adds_start=False),
    "llama": Family(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), LLAMA, adds_start=True),
    "gemma": Family(("<start_of_turn>", "<end_of_turn>"), GEMMA, adds_start=True),
}


def taught(name: str) -> PreTrainedTokenizerFast:
    """The toys' tokenizer with a family's special tokens and template."""
    family = FAMILIES[name]
    tokenizer = fast_tokenizer(adds_start=family.adds_start)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.chat_template = family.template
    return tokenizer
