"""The real LLMs, from nothing to an answer: fetched, converted, within the memory and time that are promised."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from medfed.llm.obtain.cached import checked_sum, read_fingerprint
from medfed.llm.obtain.known import KNOWN

MEMORY = 4e9
CODE = """
import resource, sys
sys.argv = ["medfed", "foundation", "get", sys.argv[1], "--cache", sys.argv[2]]
from medfed.cli import main
try:
    main()
except SystemExit as end:
    print("peak", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    raise
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-1.5b"])
def test_get_brings_an_llm_that_answers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, name, str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    if "pip cannot fetch it" in done.stderr:
        pytest.skip(f"neither hub nor registry can be reached: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.rsplit("peak ", 1)[1])
    with capsys.disabled():
        print(f"\n{name}: {time.monotonic() - started:.0f} s, at most {peak / 1e9:.2f} GB")
    assert peak <= MEMORY
    folder = tmp_path / "foundations" / name
    record = read_fingerprint(folder)
    assert record is not None
    assert record.num_parameters == KNOWN[name].num_parameters
    assert record.sha256 == checked_sum(folder)
    assert _answer(folder, "What is the capital of France?").find("Paris") >= 0


def _answer(folder: Path, question: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = model.generate(**asked, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(ids[0, asked["input_ids"].shape[1] :]))
