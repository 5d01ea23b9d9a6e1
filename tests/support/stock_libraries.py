"""A process of its own that knows transformers and PEFT and has never heard of medfed: prompts in, logits out.

``python stock_libraries.py BASE PROMPTS OUT FOLDER…``: of every folder, an adapter on BASE or a whole model, the logits
of the prompt that PROMPTS (safetensors) holds under the folder's name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(base: str, prompts: str, out: str, *folders: str) -> None:
    torch.set_num_threads(1)
    embeddings, logits = load_file(prompts), {}
    for folder in map(Path, folders):
        if (folder / "adapter_config.json").is_file():
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            model = PeftModel.from_pretrained(model, str(folder))
        else:
            model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
            assert len(AutoTokenizer.from_pretrained(str(folder)))
        with torch.no_grad():
            logits[folder.name] = model.eval()(inputs_embeds=embeddings[folder.name][None]).logits[0]
    assert not any(name.partition(".")[0] == "medfed" for name in sys.modules)
    save_file(logits, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
