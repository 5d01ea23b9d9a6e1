"""A closed question is scored in one forward, and the answer is the one that ``generate`` would begin with."""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.core.types import Batch
from medfed.injection.encode import encode
from medfed.injection.inject import Injector
from support.llm_toys import BOTH, examples, federated_model, foundation, settings

NUM_ITEMS, BATCH_SIZE = 1000, 100


def taught() -> Injector:
    """An injector whose experts are not zero."""
    made = Injector(foundation(), federated_model(), (BOTH,), settings(head_tokens=False), 0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, value in made.injected.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.6)  # enough that samples decide
    return made


def first_token_scores(made: Injector, batch: Batch) -> Tensor:
    """What transformers' own decoding makes of the answers' first tokens."""
    model, group = made.injected, encode(federated_model().eval(), [(BOTH, batch)])[0]
    prompt = model.prompt(BOTH)
    assert all(len(answer) == 1 for answer in prompt.answers)
    laid = model.laid_out(prompt, group)
    with torch.no_grad(), model.mixing(model.alpha([BOTH])):
        said = model.llm.generate(  # type: ignore[operator]
            inputs_embeds=laid.embeddings,
            attention_mask=torch.ones(laid.embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    found: Tensor = said.scores[0][:, [answer[0] for answer in prompt.answers]]
    return found


def test_the_answers_to_a_thousand_items_are_those_of_generate_at_one_forward_per_batch() -> None:
    made, forwards = taught(), []
    batches = examples(BOTH, NUM_ITEMS).batches(BATCH_SIZE)
    expected = torch.cat([first_token_scores(made, batch) for batch in batches])
    made.injected.llm.register_forward_hook(lambda *_: forwards.append(1))
    found = torch.cat([made.score(BOTH, batch) for batch in batches])
    assert len(forwards) == len(batches)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    torch.testing.assert_close(found, expected.softmax(-1), atol=1e-5, rtol=0)
    shares = found.argmax(-1).bincount(minlength=2) / NUM_ITEMS
    print(f"answers given: {shares.tolist()}")
    assert float(shares.min()) > 0.05, "the toy LLM must not answer everything alike"
