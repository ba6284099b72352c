"""The models: a GPT, and the bigram table it has to beat. `gpt.llama` has the parts of the family after GPT-2.

    idx (B, T)  ->  wte + wpe  ->  n_layer blocks  ->  ln_f  ->  lm_head  ->  logits (B, T, V)

Axes: B batch, T time, C channels (n_embd), H heads, D = C / H head size, V vocabulary. The names (wte, wpe, h, ln_1, attn.c_attn,
attn.c_proj, ln_2, mlp.c_fc, mlp.c_proj, ln_f, lm_head) are those of GPT-2, so that its published weights fit one to one.
This page does not mention gradients: every line is an op of `tensorlite.ops`, and each op computes its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import tensorlite as tl
from data.tokenizer import Tokenizer
from gpt.checkpoints.hugging_face import read_pretrained, write_pretrained
from gpt.checkpoints.weights import assign_weights
from gpt.config import GPTConfig
from gpt.generation.sampling import sample
from gpt.llama import GatedMLP, GroupedSelfAttention, make_norm
from tensorlite import Tensor, nn
from tensorlite.backend import Device
from tensorlite.nn import functional as F


class CausalSelfAttention(nn.Module):
    """Every token compares its query with the keys of the tokens up to itself, and takes the weighted mean of their values.

    Attributes:
        fused: compute attention by one op, `tensorlite.ops.self_attention`, which is faster and needs less memory. With False it is
            computed by the lines below, from ops that each do one thing. Both give the same numbers, up to rounding.
        recompute: the fused op computes the weights of attention again in backward instead of keeping them.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = config.dropout
        self.resid_dropout = nn.Dropout(config.dropout)
        self.fused, self.recompute = True, False

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.c_attn(x)  # (B, T, 3C): the query, key and value of every token, for all heads
        attention = self.fused_attention if self.fused else self.attention
        y = attention(qkv, self.attn_dropout if self.training else 0.0)  # (B, T, C)
        return self.resid_dropout(self.c_proj(y))

    def attention(self, qkv: Tensor, dropout: float) -> Tensor:
        """softmax(q · kᵀ / √D) · v in every head, where the scores of later tokens are masked: (B, T, 3C) -> (B, T, C)."""
        B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        H, D = self.n_head, C // self.n_head
        q, k, v = (part.reshape(B, T, H, D).transpose(1, 2) for part in qkv.split(C, dim=2))  # (B, H, T, D) each
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T): how well the query of token t matches the key of token s
        future = tl.ones(T, T, dtype=tl.bool_, device=qkv.device).triu(1)  # True where s > t
        scores = scores.masked_fill(future, -math.inf)
        weights = F.softmax(scores, dim=-1)  # each row sums to 1
        weights = F.dropout(weights, dropout)
        y = weights @ v  # (B, H, T, D): the weighted mean of the values
        return y.transpose(1, 2).reshape(B, T, C)  # the heads of a token, side by side

    def fused_attention(self, qkv: Tensor, dropout: float) -> Tensor:
        """The same as `attention`, by one op."""
        return F.causal_self_attention(qkv, self.n_head, dropout_p=dropout, recompute=self.recompute)


class MLP(nn.Module):
    """Two linear layers with an activation between them, applied to each token by itself; the hidden one is wider, as a rule four times."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh")}[config.activation]
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(nn.fusion.feedforward(x, self.c_fc, self.activation, self.c_proj))  # c_proj(activation(c_fc(x)))


class Block(nn.Module):
    """Attention, then the MLP, each after a layer norm. Both only *add* to x, so the gradient reaches the input of the block unchanged."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = GroupedSelfAttention(config) if config.model == "llama" else CausalSelfAttention(config)
        self.ln_2 = make_norm(config)
        self.mlp = GatedMLP(config) if config.model == "llama" else MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class LanguageModel(nn.Module):
    """What both models share: the loss, and generation. A subclass computes the logits."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config

    def logits(self, idx: Tensor) -> Tensor:
        """For each token the scores of all tokens that could come next: (B, T) -> (B, T, V)."""
        raise NotImplementedError

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The logits; and, given targets, the mean over all B · T positions of -log p(target), in nats.

        Shapes: idx, targets (B, T) integers below vocab_size, T at most block_size; logits (B, T, V); loss ().
        Raises: ValueError for another number of axes or too many tokens; IndexError for an id that is not in the vocabulary.
        """
        if idx.ndim != 2:
            raise ValueError(f"the model takes ids of shape (B, T), got {idx.shape}.")
        if idx.shape[1] > self.config.block_size:
            raise ValueError(f"{idx.shape[1]} tokens are more than block_size, {self.config.block_size}: crop them to the last ones.")
        logits = self.logits(idx)
        if targets is None:
            return logits, None
        if targets.shape != idx.shape:
            raise ValueError(f"targets need the shape of the ids, {idx.shape}, got {targets.shape}.")
        return logits, F.cross_entropy(logits.reshape(-1, self.config.vocab_size), targets.reshape(-1))

    @tl.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """``idx`` (B, T) and ``max_new_tokens`` more ids, each drawn from the model's prediction after the last block_size ids.

        The model stays in its mode: call ``eval()`` first, or dropout is applied. `gpt.generation.sampling.sample` explains the draw and
        what temperature, top_k and top_p do; without ``rng`` the thread's random stream is used.
        """
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])
            following = sample(logits.array[:, -1], temperature, top_k, top_p, rng)  # (B,)
            idx = tl.cat([idx, tl.tensor(following[:, None], dtype=idx.dtype, device=idx.device)], dim=1)
        return idx

    def save_pretrained(self, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> Path:
        """Write a folder that transformers opens, and return it; see `gpt.checkpoints.hugging_face.write_pretrained`."""
        weights = {name: tensor.numpy() for name, tensor in self.state_dict().items()}
        return write_pretrained(folder, self.config, weights, tokenizer)

    def num_parameters(self) -> int:
        """The number of trainable numbers; a shared weight counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


class GPT(LanguageModel):
    """Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", at any size; or with the parts of `gpt.llama`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned" and config.model == "gpt":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        elif config.model == "gpt":
            self.register_buffer("waves", tl.tensor(sinusoids(config.block_size, config.n_embd), dtype=tl.float32), persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.weight = self.wte.weight  # one matrix embeds the tokens and scores them
        initialise(self)

    def logits(self, idx: Tensor) -> Tensor:
        return self.lm_head(self.features(idx))

    def features(self, idx: Tensor) -> Tensor:
        """The vector at each position after the last layer norm; the head turns it into scores: (B, T) -> (B, T, C)."""
        x = self.wte(idx)  # (B, T, C)
        if self.config.model == "gpt":  # the attention of llama itself knows the positions
            x = x + (self.wpe.weight if self.config.positions == "learned" else self.waves)[: idx.shape[1]]  # (T, C)
        x = self.drop(x)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], dropout: float | None = None, device: Device | str = "numpy") -> GPT:
        """A model with published weights, in eval mode; see `gpt.checkpoints.hugging_face.read_pretrained`."""
        config, weights = read_pretrained(folder, dropout)
        model = assign_weights(build_model_for(config, weights), weights)
        assert isinstance(model, GPT)
        return model.to(device=device).eval()


class BigramLanguageModel(LanguageModel):
    """Predicts from the last token alone: row i of the table holds the logits of the token that follows token i."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.vocab_size)
        initialise(self)

    def logits(self, idx: Tensor) -> Tensor:
        return self.wte(idx)


def build_model(config: GPTConfig) -> LanguageModel:
    """The model that ``config`` describes; its weights are drawn from the thread's random stream (see `tensorlite.manual_seed`)."""
    return BigramLanguageModel(config) if config.model == "bigram" else GPT(config)


def build_model_for(config: GPTConfig, weights: Mapping[str, np.ndarray]) -> LanguageModel:
    """The model to load ``weights`` into, with their dtype. Nothing is drawn: its matrices are 0."""
    with nn.init.without_drawing():
        model = build_model(config)
    return model.to(dtype=np.float64) if any(array.dtype == np.float64 for array in weights.values()) else model


def initialise(model: LanguageModel) -> None:
    """Weights from N(0, 0.02), biases 0, layer norms 1 and 0.

    With ``scaled_init`` the layers that add to the residual stream (two in each block) start smaller by sqrt(2 n_layer): the sum
    of 2 n_layer independent terms then has the same standard deviation, however deep the model is.
    """
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            narrow = config.scaled_init and name.endswith("c_proj.weight")
            std = 0.02 / math.sqrt(2 * config.n_layer) if narrow else 0.02
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def sinusoids(block_size: int, n_embd: int) -> np.ndarray:
    """sin(t ω) and cos(t ω) for n_embd / 2 frequencies ω, from 1 down to nearly 1/10000.

    Shapes: (block_size, n_embd), sines in the even columns and cosines in the odd ones.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    frequencies = 10000.0 ** (-np.arange(0, n_embd, 2) / n_embd)  # (C/2,)
    angles = np.arange(block_size)[:, None] * frequencies  # (T, C/2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(block_size, n_embd)
