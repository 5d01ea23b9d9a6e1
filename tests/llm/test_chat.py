"""LLMs are asked as they were taught: templates of three families, start tokens, and every token that ends a turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GenerationConfig

from medfed.llm.chat import Form
from medfed.llm.huggingface import HubTokenizer, load_language_model
from medfed.study.foundation import HuggingFaceSettings
from support.chat_toys import FAMILIES, taught
from support.llm_toys import fast_tokenizer, write_model


@pytest.mark.parametrize("system", [None, "Answer in a few words."])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_prompt_is_the_templates_own(name: str, system: str | None) -> None:
    tokenizer = taught(name)
    messages = [{"role": "user", "content": "Is it round?"}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    expected = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    prompt = Form(system).prompt("Is it round?", HubTokenizer(tokenizer))
    assert list(prompt) == list(expected)
    assert prompt.count(tokenizer.bos_token_id) == FAMILIES[name].adds_start
    assert all(tokenizer.convert_tokens_to_ids(token) in prompt for token in FAMILIES[name].special)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_start_token_comes_only_where_the_tokenizer_adds_it(name: str) -> None:
    tokenizer = HubTokenizer(taught(name))
    assert tokenizer.starts == ((1,) if FAMILIES[name].adds_start else ())
    assert 1 not in tokenizer.encode("Is it round?")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_answer_follows_the_turn_without_a_space_and_plain_text_with_one(name: str) -> None:
    chat, plain = HubTokenizer(taught(name)), HubTokenizer(fast_tokenizer())
    assert chat.decode(Form().answer("Yes", chat)) == "Yes"
    assert plain.decode(Form().answer("Yes", plain)) == " Yes"
    assert plain.decode(Form().prompt("Is it round?", plain)) == "<s>Question: Is it round?\nAnswer:"


def test_all_end_tokens_of_the_generation_settings_end_an_answer(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "qwen2")
    GenerationConfig(eos_token_id=[7, 9]).save_pretrained(folder)
    loaded = load_language_model(HuggingFaceSettings(dtype="float32"), folder)
    assert loaded.tokenizer.ends == {2, 7, 9}
