"""The parts of a modern block, as Llama has them: what changed in the five years after GPT-2.

    x + attn(ln_1(x)),  x + mlp(ln_2(x))        the block itself is the same (`gpt.model.Block`)

    rotary positions    queries and keys are rotated by their positions, so a score depends on the distance; there is no wpe
    grouped queries     n_head heads of queries share n_kv_head heads of keys and values
    SwiGLU              a gate for each hidden unit of the MLP
    RMSNorm             a layer norm without the mean
    QK-norm             an RMSNorm for each head's queries and keys, as in Qwen3; optional
    no biases

As in `gpt.model`, matrices that read the same input are one: c_attn holds Llama's q_proj, k_proj and v_proj, and c_fc holds gate_proj and
up_proj. With n_inner of 8/3 n_embd, the three matrices of the MLP have as many weights as GPT-2's two.

Source: Touvron et al. 2023, "LLaMA"; Ainslie et al. 2023, "GQA"; Qwen team 2025, "Qwen3".
"""

from __future__ import annotations

from gpt.config import GPTConfig
from tensorlite import Tensor, nn
from tensorlite.nn import functional as F


class GroupedSelfAttention(nn.Module):
    """Causal self-attention with rotary positions, in which several heads of queries share a head of keys and values.

    Attributes:
        fused: compute rotation and attention by one op, `tensorlite.ops.rotary_self_attention`, unless there is a QK-norm before them.
            With False they are computed by the lines of `attention`. Both give the same numbers, up to rounding.
        recompute: the op of attention computes its weights again in backward instead of keeping them.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.kv_heads
        self.rope_theta = config.rope_theta
        D = config.n_embd // config.n_head
        self.c_attn = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * D, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(D, eps=config.layer_norm_epsilon)
            self.k_norm = nn.RMSNorm(D, eps=config.layer_norm_epsilon)
        self.qk_norm = config.qk_norm
        self.attn_dropout = config.dropout
        self.resid_dropout = nn.Dropout(config.dropout)
        self.fused, self.recompute = True, False

    def forward(self, x: Tensor) -> Tensor:
        attention = self.fused_attention if self.fused and not self.qk_norm else self.attention
        y = attention(x, self.attn_dropout if self.training else 0.0)  # (B, T, C)
        return self.resid_dropout(self.c_proj(y))

    def attention(self, x: Tensor, dropout: float) -> Tensor:
        """Each head of queries searches the keys of its group: (B, T, C) -> (B, T, C)."""
        q, k, v = self.queries_keys_values(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=True, recompute=self.recompute)
        return y.transpose(1, 2).reshape(*x.shape)  # the heads of a token, side by side

    def fused_attention(self, x: Tensor, dropout: float) -> Tensor:
        """The same as `attention`, by one op."""
        heads = self.n_head, self.n_kv_head
        return F.rotary_self_attention(self.c_attn(x), *heads, self.rope_theta, dropout_p=dropout, recompute=self.recompute)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> the rotated queries (B, H, T, D), the rotated keys and the values (B, KV, T, D)."""
        B, T, C = x.shape
        H, KV, D = self.n_head, self.n_kv_head, C // self.n_head
        heads = self.c_attn(x).reshape(B, T, H + 2 * KV, D).transpose(1, 2)  # (B, H + 2 KV, T, D)
        if not self.qk_norm:
            qk, v = heads.split([H + KV, KV], dim=1)
            q, k = F.rotary_embedding(qk, self.rope_theta).split([H, KV], dim=1)
            return q, k, v
        q, k, v = heads.split([H, KV, KV], dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        return F.rotary_embedding(q, self.rope_theta), F.rotary_embedding(k, self.rope_theta), v


class GatedMLP(nn.Module):
    """A value and a gate for each hidden unit, their SwiGLU, and a linear layer back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 2 * config.mlp_width, bias=False)
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.swiglu(self.c_fc(x))))


def make_norm(config: GPTConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The norm of the model's family, for vectors of n_embd numbers."""
    if config.model == "llama":
        return nn.RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
    return nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)
