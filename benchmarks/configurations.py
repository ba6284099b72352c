"""What is measured: models, the number of operations in a training step of each, and one whole run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from gpt.config import GPTConfig, TrainConfig, from_preset


@dataclass(frozen=True)
class Configuration:
    """A model, a batch, and the number of steps in a block of about two seconds (course, gpt2 and smollm2: on a GPU)."""

    name: str
    description: str
    model: GPTConfig
    batch_size: int
    steps_in_a_block: int


class Size(NamedTuple):
    """The size of the model that `benchmarks.own_loop` trains, and of a batch."""

    layers: int = 6
    heads: int = 6
    width: int = 384
    context: int = 256
    batch: int = 8
    dropout: float = 0.2


_A = GPTConfig(
    vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=True, activation="gelu_tanh", tied_head=False
)
_B = replace(_A, vocab_size=81, block_size=256, n_layer=6, n_head=6, n_embd=384)
_C = replace(_A, vocab_size=50257, block_size=256, n_layer=2, n_head=12, n_embd=768)
_SMOLLM2 = GPTConfig(
    model="llama",
    vocab_size=49152,
    block_size=1024,
    n_layer=30,
    n_head=9,
    n_kv_head=3,
    n_embd=576,
    n_inner=1536,
    rope_theta=100000.0,
)
_SMOKE = replace(_A, vocab_size=17, block_size=16, n_layer=1, n_head=2, n_embd=32)

CONFIGURATIONS = {
    configuration.name: configuration
    for configuration in (
        Configuration("A", "4 layers, 128 wide, block 64, batch 12", _A, 12, 60),
        Configuration("B16", "6 layers, 384 wide, block 256, batch 16", _B, 16, 2),
        Configuration("B16-dropout", "the same with dropout 0.2", replace(_B, dropout=0.2), 16, 2),
        Configuration("B", "6 layers, 384 wide, block 256, batch 64, dropout 0.2", replace(_B, dropout=0.2), 64, 1),
        Configuration("C", "2 layers, 768 wide, block 256, batch 4, vocabulary 50257", _C, 4, 1),
        Configuration(
            "course", "6 layers, 384 wide, block 256, batch 64, dropout 0.2, relu", from_preset("course", vocab_size=65)[0], 64, 20
        ),
        Configuration(
            "gpt2", "12 layers, 768 wide, block 1024, batch 8, vocabulary 50257", from_preset("gpt2", vocab_size=50257)[0], 8, 10
        ),
        Configuration(
            "smollm2", "SmolLM2-135M: llama, 30 layers, 576 wide, 9 heads on 3, block 1024, batch 8, vocabulary 49152", _SMOLLM2, 8, 10
        ),
        Configuration("smoke", "1 layer, 32 wide, block 16, batch 4: for the tests", _SMOKE, 4, 1),
    )
}
MEASURED = ["A", "B16", "B16-dropout", "B", "C"]  # on a CPU; `benchmarks.train_step_gpu` has its own

# The run that nanoGPT's README proposes for a CPU: config/train_shakespeare_char.py with the options given there. Source:
# github.com/karpathy/nanoGPT
NANOGPT_MODEL = GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False, activation="gelu", tied_head=True)
NANOGPT_TRAINING = TrainConfig(
    steps=2000,
    batch_size=12,
    learning_rate=1e-3,
    min_learning_rate=1e-4,
    warmup_steps=100,
    schedule="cosine",
    beta1=0.9,
    beta2=0.99,
    weight_decay=0.1,
    grad_clip=1.0,
    eval_interval=250,
    eval_iters=20,
    sample_length=0,
)


def flops_per_step(configuration: Configuration) -> float:
    """Multiplications and additions in the matrix products of one step; all other operations are few in comparison.

    A matrix of n numbers takes 2n operations a token forward, and twice that backward (one product for dx, one for
    dweight): 6n. Causal attention takes two products of T x D and D x T a head, of which the mask leaves half:
    2 T C operations a token forward, 6 T C with the backward.
    """
    model = configuration.model
    C, T = model.n_embd, model.block_size
    kv_width = model.kv_heads * (C // model.n_head)
    mlp = (3 if model.model == "llama" else 2) * model.mlp_width * C
    weights = model.n_layer * (2 * C * C + 2 * C * kv_width + mlp) + model.vocab_size * C
    return configuration.batch_size * T * (6 * weights + model.n_layer * 6 * T * C)
