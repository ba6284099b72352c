"""What a model does with a text: how surprised it is, what it would say next, what each block adds, where each head looks.

Everything is computed from the model's own parts, applied one by one; the blocks run once for all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import tensorlite as tl
from data.tokenizer import Tokenizer
from gpt.errors import fail
from gpt.generation.sampling import Sampling, sampling_probabilities
from gpt.int8 import Int8Embedding
from gpt.llama import GroupedSelfAttention
from gpt.model import GPT, CausalSelfAttention, LanguageModel
from gpt.plots.attention_maps import attention_weights, embed, embed_ids, last_attention_weights
from tensorlite import Tensor
from tensorlite.backend import to_numpy
from tensorlite.nn import functional as F

ROLES = ("previous token", "line start", "same token", "itself", "first token")


@dataclass(frozen=True)
class Reading:
    """A text as the model reads it. T tokens, L blocks, H heads, V tokens in the vocabulary.

    Attributes:
        tokens: the text of each token.
        ids: (T,).
        logits: (T, V), for what follows each token.
        block_logits: (L, T, V), what the final norm and the head make of the text after each block; the last equal ``logits``.
        attention: (L, H, T, T), each row sums to 1.
    """

    tokens: tuple[str, ...]
    ids: np.ndarray
    logits: np.ndarray
    block_logits: np.ndarray
    attention: np.ndarray

    @property
    def surprise(self) -> np.ndarray:
        """-log p of each token after those before it, in nats: (T,). The first one has nothing before it: nan."""
        log_p = log_softmax(self.logits)
        return np.concatenate([[np.nan], -log_p[np.arange(len(self.ids) - 1), self.ids[1:]]])

    def next_tokens(self, sampling: Sampling, count: int = 10, position: int = -1) -> list[tuple[int, float, float]]:
        """The likeliest tokens after ``position``: (id, probability, probability of being sampled)."""
        p = np.exp(log_softmax(self.logits[position]))
        sampled = sampling_probabilities(self.logits[position], sampling)
        order = np.argsort(-p, kind="stable")[:count]
        return [(int(i), float(p[i]), float(sampled[i])) for i in order]

    def guesses(self, position: int = -1) -> list[tuple[int, float]]:
        """After each block the likeliest next token and its probability."""
        p = np.exp(log_softmax(self.block_logits[:, position]))
        return [(int(row.argmax()), float(row.max())) for row in p]

    def roles(self) -> np.ndarray:
        """How much of its attention each head gives to each of `ROLES`, averaged over the tokens that have such a place: (L, H, roles)."""
        return np.stack([self._share(role) for role in range(len(ROLES))], axis=-1)

    def main_roles(self, layer: int, head: int, count: int = 2) -> list[tuple[str, float]]:
        """The places that a head looks at most, and its share of attention for each; a role that no token of the text has is left out."""
        shares = self.roles()[layer, head]
        order = np.argsort(-shares, kind="stable")[:count]
        return [(ROLES[i], float(shares[i])) for i in order if shares[i] > 0]

    def _share(self, role: int) -> np.ndarray:
        """(L, H): the mean over the tokens t that have a place s of that role, of what they give to it."""
        places = self._places(role)  # (T, T) bool
        rows = places.any(axis=1)
        if not rows.any():
            return np.zeros(self.attention.shape[:2])
        return (self.attention * places).sum(axis=-1)[..., rows].mean(axis=-1)

    def _places(self, role: int) -> np.ndarray:
        """(T, T): which earlier tokens s play the role for token t."""
        T = len(self.ids)
        t, s = np.arange(T)[:, None], np.arange(T)[None, :]
        match ROLES[role]:
            case "previous token":
                return s == t - 1
            case "line start":
                return (s == self._line_starts()[:, None]) & (s < t - 1) & (s > 0)
            case "same token":
                return (self.ids[:, None] == self.ids[None, :]) & (s < t)
            case "itself":
                return (s == t) & (t > 0)  # the first token can look at nothing else
            case _:
                return (s == 0) & (t > 1)

    def _line_starts(self) -> np.ndarray:
        """(T,): the first token of the line that each token is in."""
        starts, start = [], 0
        for place, token in enumerate(self.tokens):
            starts.append(start)
            if "\n" in token:
                start = place + 1
        return np.array(starts)


def read(model: GPT, tokenizer: Tokenizer, text: str) -> Reading:
    """Let the model, in eval mode, read ``text``.

    Raises:
        DataError: for a text that the tokenizer cannot read.
        UserError: if it has no token, or more than the model's block_size.
    """
    ids = np.asarray(tokenizer.encode(text), np.int64)
    if not len(ids):
        fail("there is no text to look at: give a --prompt.")
    if len(ids) > model.config.block_size:
        fail(f"the prompt has {len(ids):,} tokens, more than the {model.config.block_size:,} that the model reads at once: shorten it.")
    model.eval()
    with tl.no_grad():
        x = embed_ids(model, ids)
        after = []
        for block in model.h:
            x = block(x)
            after.append(to_numpy(model.lm_head(model.ln_f(x)).array[0]).astype(np.float64))
    tokens = tuple(tokenizer.decode([int(token)]) for token in ids)
    return Reading(tokens, ids, after[-1], np.stack(after), attention_weights(model, ids).astype(np.float64))


@dataclass(frozen=True)
class NextToken:
    """What a model expects after a text. L blocks, H heads, V tokens in the vocabulary.

    Attributes:
        log_p: (V,).
        attention: (L, H, T), where each head looks from the last token; of a model without heads, or with other ones, (0, 0, T).
        guesses: after each block the likeliest next token and its probability.
    """

    log_p: np.ndarray
    attention: np.ndarray
    guesses: tuple[tuple[int, float], ...]


def look_at_next(model: LanguageModel, ids: np.ndarray, vocab_size: int) -> NextToken:
    """What the model, in eval mode, expects after ``ids`` (T,), among the first ``vocab_size`` tokens.

    Only what belongs to the last token is kept, so a long text of a large model takes little more memory than its generation.
    """
    model.eval()
    with tl.no_grad():
        if not isinstance(model, GPT):
            logits = model(tl.tensor(ids[None], device=next(iter(model.parameters())).device))[0]
            return NextToken(log_softmax(_last_row(logits, vocab_size)), np.zeros((0, 0, len(ids))), ())
        x = embed_ids(model, ids)
        attention, after = [], []
        for block in model.h:
            if type(block.attn) in (CausalSelfAttention, GroupedSelfAttention):
                attention.append(last_attention_weights(block.attn, block.ln_1(x)))
            x = block(x)
            after.append(log_softmax(_last_row(model.lm_head(model.ln_f(x[:, -1:])), vocab_size)))
    guesses = tuple((int(row.argmax()), float(np.exp(row.max()))) for row in after)
    heads = np.stack(attention) if len(attention) == len(model.h) else np.zeros((0, 0, len(ids)))
    return NextToken(after[-1], heads, guesses)


def _last_row(logits: Tensor, vocab_size: int) -> np.ndarray:
    return to_numpy(logits.array[0, -1, :vocab_size]).astype(np.float64)


def influence(model: GPT, ids: np.ndarray, target: int) -> np.ndarray:
    """How much each token of the text mattered for the probability of ``target`` as the next one: (T,).

    It is dx · x, the gradient of log p(target) with respect to the embedding of a token, times that embedding: to first order, by how much
    log p would fall if the embedding were faded out. Positive: it spoke for the target.

    Raises:
        UserError: for a model in 8 bits, see `gpt.int8`.

    Source: Shrikumar et al. 2016, "Not Just a Black Box", gradient times input.
    """
    if isinstance(model.wte, Int8Embedding):
        fail("a token's influence is a gradient, and matrices in 8 bits have none: load this model without int8.")
    model.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)  # only the gradient of the embeddings is asked for
    try:
        vectors = tl.tensor(to_numpy(model.wte.weight.array)[ids][None], device=model.wte.weight.device, requires_grad=True)  # (1, T, C)
        x = embed(model, vectors)
        for block in model.h:
            x = block(x)
        log_p = -F.cross_entropy(model.lm_head(model.ln_f(x))[:, -1], tl.tensor([target], device=vectors.device))
        log_p.backward()
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    assert vectors.grad is not None
    return to_numpy((vectors.grad.array * vectors.array).sum(axis=-1)[0]).astype(np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def visible(token: str) -> str:
    """A token with its white space as signs."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def shown(tokens: Sequence[str]) -> list[str]:
    """All of them."""
    return [visible(token) for token in tokens]
