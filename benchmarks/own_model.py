"""The course's GPT as a learner writes it, with a module for each head and no named op for attention: one text for torch and tensorlite.

The environment variable OWN_MODEL says which of the two it is.
Source: the architecture of "Create a Large Language Model from Scratch with Python" (freeCodeCamp, Elliot Arledge).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from benchmarks.configurations import Size

if TYPE_CHECKING or os.environ.get("OWN_MODEL") != "torch":
    import tensorlite as torch
    from tensorlite import nn
    from tensorlite.nn import functional as F
else:
    import torch
    from torch import nn
    from torch.nn import functional as F


class Head(nn.Module):
    """One head of attention: (B, T, C) -> (B, T, D)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width // size.heads
        self.key, self.query, self.value = (nn.Linear(size.width, width, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(size.context, size.context)))
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Any) -> Any:
        T = x.shape[1]
        k, q, v = self.key(x), self.query(x), self.value(x)
        weights = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        weights = weights.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        return self.dropout(F.softmax(weights, dim=-1)) @ v


class MultiHeadAttention(nn.Module):
    """All heads side by side, and a projection."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(size) for _ in range(size.heads)])
        self.proj = nn.Linear(size.width, size.width)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Any) -> Any:
        return self.dropout(self.proj(torch.cat([head(x) for head in self.heads], dim=-1)))


class FeedForward(nn.Module):
    """Two layers with relu between them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(size.width, 4 * size.width), nn.ReLU(), nn.Linear(4 * size.width, size.width), nn.Dropout(size.dropout)
        )

    def forward(self, x: Any) -> Any:
        return self.net(x)


class Block(nn.Module):
    """Attention and feed-forward, each added to what it read and then normalised."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.sa, self.ffwd = MultiHeadAttention(size), FeedForward(size)
        self.ln1, self.ln2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)

    def forward(self, x: Any) -> Any:
        x = self.ln1(x + self.sa(x))
        return self.ln2(x + self.ffwd(x))


class GPT(nn.Module):
    """``model(ids, targets)`` returns (logits, loss)."""

    def __init__(self, vocabulary: int, size: Size) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocabulary, size.width)
        self.position_embedding_table = nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.ln_f = nn.LayerNorm(size.width)
        self.lm_head = nn.Linear(size.width, vocabulary)

    def forward(self, index: Any, targets: Any) -> Any:
        B, T = index.shape
        x = self.token_embedding_table(index) + self.position_embedding_table(torch.arange(T))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        return logits, F.cross_entropy(logits.view(B * T, -1), targets.view(B * T))
