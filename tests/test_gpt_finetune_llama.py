"""Finetuning a published model of Llama's family out of a GGUF file: to answer in its own form, and to classify."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gpt import classify
from gpt.checkpoints.loading import load_model
from gpt.config import GPTConfig
from gpt.errors import run_main
from gpt.finetune import main
from gpt.finetuning.find_template import find_template
from gpt.generation.jinja_template import JinjaTemplate
from tests.test_gguf import CONFIG, write

TEMPLATE = """{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}<|endoftext|>assistant: {% endif %}"""


def test_a_gguf_model_learns_to_answer_in_its_own_form(tmp_path, capsys):
    """LoRA on a file of llama.cpp: its template is trained on and saved, PEFT's files are written, and resuming is exact."""
    config = GPTConfig(**{**vars(CONFIG), "block_size": 2048})
    write(tmp_path / "a.gguf", config, tokenizer__chat_template=TEMPLATE)
    pairs = [{"prompt": f"the {word}", "response": f"{word} {word}"} for word in ("cat", "mat", "rat", "hat")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    argv = ["--checkpoint", str(tmp_path / "a.gguf"), "--data", str(tmp_path / "pairs.jsonl"), "--lora-rank", "2", "--context", "64",
            "--steps", "4", "--batch-size", "2", "--eval-interval", "2", "--eval-iters", "1", "--sample-length", "4", "--workers", "1",
            "--attention-recompute", "true", "--dropout", "0.1"]  # fmt: skip
    assert run_main(lambda: main([*argv, "--out", str(tmp_path / "whole")])) == 0
    assert "of at most 64 tokens" in capsys.readouterr().out
    assert run_main(lambda: main([*argv, "--out", str(tmp_path / "parts"), "--time-limit", "1e-9"])) == 0
    assert run_main(lambda: main(["--resume", str(tmp_path / "parts"), "--time-limit", "9"])) == 0
    whole, parts = (load_model(tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensor.numpy(), parts[name].numpy(), err_msg=name)
    template = find_template(tmp_path / "whole")
    assert isinstance(template, JinjaTemplate)
    assert template.prompt([{"role": "user", "content": "the cat"}]) == "<|endoftext|>user: the cat\n<|endoftext|>assistant: "
    corrected, _, _ = load_model(tmp_path / "whole" / "peft")  # PEFT's files name the model that they belong to
    for name, tensor in corrected.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), whole[name].numpy(), atol=1e-6)
    assert corrected.config.block_size == 2048


@pytest.mark.parametrize("how", [["--lora-rank=2"], []], ids=["LoRA", "everything"])
def test_a_llama_classifies(how, tmp_path, capsys):
    write(tmp_path / "a.gguf", CONFIG)
    texts = [{"text": f"{text} {i % 3}", "label": label} for i in range(10) for text, label in (("cat cat", "cat"), ("hat rat", "hat"))]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    argv = ["--checkpoint", str(tmp_path / "a.gguf"), "--data", str(tmp_path / "texts.jsonl"), "--out", str(tmp_path / "run"),
            "--steps", "30", "--batch-size", "8", "--learning-rate", "0.02", "--eval-iters", "1", "--workers", "1", *how]  # fmt: skip
    assert run_main(lambda: main(argv)) == 0
    capsys.readouterr()
    assert run_main(lambda: classify.main(["--checkpoint", str(tmp_path / "run"), "cat cat 2", "hat rat 0"])) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["cat", "hat"]
