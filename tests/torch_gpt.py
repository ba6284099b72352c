"""The oracle: the same GPT in plain torch, written from the paper and not from `gpt.model`, with the same parameter names.

Attention is spelled out (scores, mask, softmax, values) instead of calling torch's fused function, so that a shared
misunderstanding of that function's arguments cannot hide.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gpt.config import GPTConfig

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.shape
        D = C // self.n_head
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, D).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)
        later = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
        y = scores.masked_fill(later, -math.inf).softmax(dim=-1) @ v
        return self.c_proj(y.permute(0, 2, 1, 3).reshape(B, T, C))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x):
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """Without dropout."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.weight = self.wte.weight

    def forward(self, idx, targets):
        t = torch.arange(idx.shape[1])
        positions = self.wpe(t) if self.config.positions == "learned" else self.waves(t)
        x = self.wte(idx) + positions
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return logits, F.cross_entropy(logits.transpose(1, 2), targets)

    def waves(self, t):
        C, dtype, t = self.config.n_embd, self.wte.weight.dtype, t.double()
        pe = torch.zeros(len(t), C, dtype=torch.float64)
        for i in range(0, C, 2):
            pe[:, i] = torch.sin(t / 10000 ** (i / C))
            pe[:, i + 1] = torch.cos(t / 10000 ** (i / C))
        return pe.float().to(dtype)  # the table is one of float32 numbers, whatever it is used in


class TorchBigram(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, idx, targets):
        logits = self.wte(idx)
        return logits, F.cross_entropy(logits.transpose(1, 2), targets)


def twin_of(model) -> nn.Module:
    """A torch model of the same config, dtype and weights as a tensorlite one."""
    weights = {name: torch.from_numpy(np.array(parameter.array)) for name, parameter in model.named_parameters()}
    twin = (TorchGPT if model.config.model == "gpt" else TorchBigram)(model.config).to(next(iter(weights.values())).dtype)
    own = dict(twin.named_parameters())
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    return twin
