"""The GPT and its modern sister in torch, written to be fast: fused attention, fused AdamW. Every benchmark compares with them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gpt.config import GPTConfig


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation, self.dropout = config.activation, config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c_fc(x)
        x = F.relu(x) if self.activation == "relu" else F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class GroupedAttention(nn.Module):
    """Rotary positions and grouped queries, as in `gpt.llama`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, D = config.n_head, config.kv_heads, config.n_embd // config.n_head
        self.c_attn = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * D, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        frequencies = config.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
        angles = torch.arange(config.block_size, dtype=torch.float64)[:, None] * torch.cat([frequencies, frequencies])
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        T = x.shape[-2]
        return (x * self.cos[:T] + torch.cat([-second, first], dim=-1) * self.sin[:T]).to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, -1, C // self.n_head).transpose(1, 2)
        q, k, v = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class GatedMLP(nn.Module):
    """SwiGLU, as in `gpt.llama`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 2 * config.mlp_width, bias=False)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.c_fc(x).chunk(2, dim=-1)
        return self.c_proj(F.silu(gate) * up)


def make_norm(config: GPTConfig) -> nn.Module:
    """The norm of the model's family."""
    if config.model == "llama":
        return nn.RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
    return nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        llama = config.model == "llama"
        self.ln_1 = make_norm(config)
        self.attn = GroupedAttention(config) if llama else Attention(config)
        self.ln_2 = make_norm(config)
        self.mlp = GatedMLP(config) if llama else MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """The same parameters under the same names as `gpt.model.GPT`, so weights can be copied between them; no sinusoidal positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.model == "gpt":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.weight = self.wte.weight

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = self.wte(idx)
        if self.config.model == "gpt":
            x = x + self.wpe.weight[: idx.shape[1]]
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
