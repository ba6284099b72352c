"""The settings: the shape of the model, how it is trained, and presets that fix both.

Every field has its help text; the command line (`gpt.cli.options`) is made from these two dataclasses.
A setting that cannot work is refused when it is created, with one sentence that says why.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from tensorlite.precision import PRECISIONS

MODELS = ("gpt", "llama", "bigram")
ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
POSITIONS = ("learned", "sinusoidal")
_AT_LEAST_ONE = (
    "steps", "batch_size", "accumulation", "eval_interval", "eval_iters", "log_interval", "keep_last", "workers", "shards", "vocab_size",
)  # fmt: skip
_GPT_ONLY = ("bias", "activation", "positions", "head_bias")
_LLAMA_ONLY = ("n_kv_head", "rope_theta", "qk_norm")
_ZERO_FOR_NEVER = ("patience", "sample_interval", "checkpoint_interval")
TEAMS = ("auto", "threads", "processes")
SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "muon", "sgd")


class RandomStream(IntEnum):
    """The independent streams of random numbers of a run: ``make_generator(config.seed, stream)`` starts one."""

    WEIGHTS, BATCHES, DROPOUT, EVALUATION, SAMPLE = range(5)
    SPLIT = 100  # which examples are held out for validation


def option(default: Any, help: str) -> Any:
    """A dataclass field with a help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults are the preset ``tiny``.

    Raises:
        ValueError: for a combination that cannot work.
    """

    model: str = option("gpt", "gpt (GPT-2), llama (its modern sister, see the preset modern), or bigram: a table that sees one token only")
    vocab_size: int = option(256, "number of different tokens; training takes it from the tokenizer")
    block_size: int = option(64, "length of the context, in tokens")
    n_layer: int = option(4, "number of blocks, each of attention and a feed-forward layer")
    n_head: int = option(4, "attention heads in a block; n_embd must be a multiple of it")
    n_embd: int = option(128, "width: the length of the vector for each token")
    n_inner: int | None = option(None, "width of the hidden layer of the feed-forward layer (default: 4 n_embd; llama: 8/3)")
    dropout: float = option(0.0, "probability of setting an activation to zero during training")
    bias: bool = option(False, "true: biases in the linear layers and layer norms")
    layer_norm_epsilon: float = option(1e-5, "added to the variance in a layer norm (in llama to the mean square), so that it is never 0")
    activation: str = option("gelu", "activation function of the feed-forward layer: relu, gelu (exact) or gelu_tanh (as in GPT-2)")
    positions: str = option("learned", "position embedding: learned (a table) or sinusoidal (fixed)")
    tied_head: bool = option(True, "true: the output layer uses the weight of the token embedding")
    head_bias: bool = option(False, "true: a bias in the output layer")
    scaled_init: bool = option(True, "true: as in GPT-2, initial projections into the residual stream are divided by sqrt(2 n_layer)")
    n_kv_head: int | None = option(None, "llama: heads of keys and values, a divisor of n_head (default: n_head)")
    rope_theta: float = option(10000.0, "llama: base of the rotary positions; larger ones suit longer contexts")
    qk_norm: bool = option(False, "llama: true: normalise the queries and keys of each head, as in Qwen3")

    def __post_init__(self) -> None:
        require_types(self)
        require_name("model", self.model, MODELS)
        require_name("activation", self.activation, ACTIVATIONS)
        require_name("positions", self.positions, POSITIONS)
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            require_at_least(1, name, getattr(self, name))
        if self.n_inner is not None:
            require_at_least(1, "n_inner", self.n_inner)
        if not 0 < self.layer_norm_epsilon < math.inf:
            raise ValueError(f"layer_norm_epsilon must be positive, got {self.layer_norm_epsilon}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        if self.n_embd % self.n_head:
            apart = range(min(self.n_head, 10_000))  # of 1 head, every width is a multiple
            near = next((h for i in apart for h in (self.n_head - i, self.n_head + i) if h > 0 and self.n_embd % h == 0), 1)
            raise ValueError(
                f"n_embd must be divisible by n_head, so that each head gets an equal share: "
                f"{self.n_embd} is not divisible by {self.n_head} (n_head {near} would do)."
            )
        if self.model == "llama":
            self._require_llama()
        elif changed := [f.name for f in fields(self) if f.name in _LLAMA_ONLY and getattr(self, f.name) != f.default]:
            raise ValueError(
                f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} for --model llama, and this one is {self.model}."
            )
        if self.positions == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"sinusoidal positions come in pairs of sine and cosine: n_embd must be even, got {self.n_embd}.")

    @property
    def kv_heads(self) -> int:
        """The number of heads of keys and values; in llama it may be below n_head."""
        return self.n_kv_head or self.n_head

    @property
    def mlp_width(self) -> int:
        """The width of the hidden layer of the feed-forward layer: n_inner, or 4 n_embd; in llama 8/3 n_embd in steps of 32."""
        if self.n_inner is not None:
            return self.n_inner
        return 32 * math.ceil(8 * self.n_embd / 3 / 32) if self.model == "llama" else 4 * self.n_embd

    def _require_llama(self) -> None:
        """Raise a ValueError for a setting that llama does not have, or that does not fit its others."""
        for f in fields(self):
            if f.name in _GPT_ONLY and getattr(self, f.name) != f.default:
                raise ValueError(f"{f.name} is for --model gpt, and this one is llama: leave it at {f.default!r}.")
        if self.n_kv_head is not None:
            require_at_least(1, "n_kv_head", self.n_kv_head)
        if self.n_head % self.kv_heads:
            raise ValueError(
                f"n_head must be a multiple of n_kv_head, so that the groups are equal: {self.n_head} is none of {self.kv_heads}."
            )
        if self.n_embd // self.n_head % 2:
            raise ValueError(f"rotary positions turn pairs of numbers: n_embd / n_head must be even, got {self.n_embd // self.n_head}.")
        if not (self.rope_theta > 0 and math.isfinite(self.rope_theta)):
            raise ValueError(f"rope_theta must be a finite number above 0, got {self.rope_theta}.")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained, on what, and where the result goes. The defaults are the preset ``tiny``.

    Raises:
        ValueError: for a setting that cannot work.
    """

    data: str = option("pydoc", "a UTF-8 text file, a prepared folder, or a name: pydoc (Python's own documentation), oz, shakespeare")
    tokenizer: str | None = option(None, "char, bpe, gpt2, or a tokenizer file (default: char; for a prepared folder, its own)")
    vocab_size: int | None = option(None, "number of token ids that the model can take (default: as many as the tokenizer has)")
    preset: str = option("tiny", "the settings to start from: bigram, tiny, modern, course or gpt2, see below")
    backend: str = option("numpy", "numpy (the CPU) or cupy (an NVIDIA GPU)")
    precision: str = option(
        "float32", "on a GPU, the type of products and of what is stored between them: float32, tf32, bfloat16 or float16"
    )
    cuda_graph: bool | str = option("auto", "on a GPU: record a step once as a CUDA graph and launch it as a whole: auto, true or false")
    memory_limit: float | None = option(None, "on a GPU: how much of its memory may be used (default: all)")
    workers: int | None = option(None, "how many cores of the CPU share each batch (default: all)")
    team: str = option(
        "threads", "what the workers are: threads, processes (faster for a small model), or auto: processes in a run of 200 steps or more"
    )
    shards: int | None = option(None, "parts of a batch; unlike workers, they affect rounding (default: as many as workers, on a GPU 1)")
    zero: int = option(0, "with mpiexec: 1: each rank keeps its share of the optimizer's state, instead of all of it (ZeRO, stage 1)")
    rank_limit: float = option(10.0, "with mpiexec: minutes until a rank that does not answer is given up, and the run is ended")
    seed: int = option(1337, "seed of the initial weights, the order of the data and dropout")
    steps: int = option(3000, "number of training steps")
    batch_size: int = option(12, "sequences of block_size tokens in a step")
    accumulation: int = option(1, "batches whose gradients are added for one step: a large batch in the memory of a small one")
    learning_rate: float = option(2e-3, "the largest learning rate, reached after the warmup")
    min_learning_rate: float = option(1e-4, "learning rate at the end of the schedule")
    warmup_steps: int = option(100, "steps in which the learning rate rises from 0")
    schedule: str = option("cosine", "learning rate after the warmup: constant, linear or cosine")
    optimizer: str = option("adamw", "adamw, muon (Muon for the matrices of the blocks, AdamW for the rest), or sgd")
    beta1: float = option(0.9, "AdamW: decay of the running mean of the gradient")
    beta2: float = option(0.99, "AdamW: decay of the running mean of the squared gradient")
    momentum: float | None = option(None, "muon and sgd: decay of the running mean, or sum, of the gradient (default: 0.95 and 0.9)")
    weight_decay: float = option(0.1, "weight decay, on matrices only")
    grad_clip: float = option(1.0, "largest norm of the gradient; a larger gradient is scaled down to it; 0: no clipping")
    val_fraction: float = option(0.1, "fraction of the text, from its end, for validation")
    eval_interval: int = option(250, "steps between two evaluations")
    eval_iters: int = option(20, "batches of each part, training and validation, in an evaluation; for examples: 12 rows for each")
    patience: int = option(0, "stop after this many evaluations in a row without a better validation loss; 0: never")
    log_interval: int = option(10, "steps between two log entries of the training loss")
    sample_interval: int = option(0, "steps between two samples of the model's text; 0: none")
    checkpoint_interval: int = option(0, "steps between two checkpoints, besides one at every evaluation; 0: none")
    keep_last: int = option(2, "number of newest checkpoints to keep, besides the best one")
    tensorboard: bool = option(False, 'true: also write metrics for TensorBoard; needs pip install -e ".[tensorboard]"')
    time_limit: float | None = option(None, "stop after this time, to be resumed later")
    attention_recompute: bool = option(False, "true: compute attention weights again in the backward pass; needs less memory")
    sample_length: int = option(500, "length of the samples, in tokens; 0: none")
    out: str | None = option(None, "folder for the result (default: runs/<preset>, with -2, -3, … if that exists)")

    def __post_init__(self) -> None:
        require_types(self)
        require_name("preset", self.preset, PRESETS)
        require_name("schedule", self.schedule, SCHEDULES)
        require_name("precision", self.precision, PRECISIONS)
        require_name("team", self.team, TEAMS)
        if self.zero not in (0, 1):
            raise ValueError(f"zero is 0 or 1, the stage of ZeRO, got {self.zero}.")
        if not self.rank_limit > 0:
            raise ValueError(f"rank_limit must be above 0 minutes, got {self.rank_limit}.")
        if self.out == "":
            raise ValueError("out must be the name of a folder, got an empty one.")
        if self.cuda_graph not in (True, False, "auto"):
            raise ValueError(f"cuda_graph is auto, true or false, got {self.cuda_graph!r}.")
        if self.memory_limit is not None and not self.memory_limit > 0:
            raise ValueError(f"memory_limit must be above 0 GiB, got {self.memory_limit}.")
        self._require_backend_for_options()
        for name in _AT_LEAST_ONE:
            if getattr(self, name) is not None:
                require_at_least(1, name, getattr(self, name))
        for name in ("seed", "min_learning_rate", "warmup_steps", "weight_decay", "grad_clip", "sample_length", *_ZERO_FOR_NEVER):
            require_at_least(0, name, getattr(self, name))
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a finite number above 0, got {self.learning_rate}.")
        if self.schedule != "constant" and self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate must not be above learning_rate: {self.min_learning_rate} is above {self.learning_rate}.")
        self._require_optimizers_options()
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit must be above 0 minutes, got {self.time_limit}.")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, got {self.val_fraction}.")

    def _require_optimizers_options(self) -> None:
        """Raise a ValueError for an optimizer that is not known, or an option out of range or of another optimizer."""
        require_name("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}.")
        if self.zero and self.optimizer == "muon":
            raise ValueError(
                "zero 1 shares out the state by slices, and muon updates whole matrices: leave --zero out, or take adamw or sgd."
            )
        if self.optimizer == "adamw" and self.momentum is not None:
            raise ValueError(f"momentum is for --optimizer muon or sgd, and this one is adamw, which has beta1: got {self.momentum}.")

    def _require_backend_for_options(self) -> None:
        """Raise a ValueError for an option of the GPU on the CPU, or the other way round."""
        if self.backend == "numpy":
            if self.precision != "float32":
                raise ValueError(f"precision {self.precision} needs a GPU: add --backend cupy, or leave it at float32, as NumPy computes.")
            if self.cuda_graph is True:
                raise ValueError("a CUDA graph needs a GPU: add --backend cupy, or leave --cuda-graph out.")
            if self.memory_limit is not None:
                raise ValueError("memory_limit is for the memory of a GPU: add --backend cupy, or leave it out.")
        elif (self.workers or 1) > 1:
            raise ValueError(f"workers are cores of the CPU: a GPU is fed by one, got {self.workers}; leave --workers out.")
        elif self.team == "processes":
            raise ValueError("a team of processes is for the CPU: leave --team out, or train with --backend numpy.")


# What --help says of each preset. Times on two cores are those of an AMD EPYC, on a GPU those of an H200.
PRESET_SUMMARIES = {
    "bigram": "a table of token pairs, 11 thousand parameters; 1,000 steps: under a minute on two cores",
    "tiny": "4 layers, 128 wide, context 64, 0.8 million parameters; 3,000 steps: three minutes on two cores",
    "modern": "tiny with the parts of Llama: 4 layers, 128 wide, context 64, 0.8 million parameters; 3,000 steps: as long as tiny",
    "course": "6 layers, 384 wide, context 256, 10.8 million parameters; 5,000 steps: a minute on a GPU, seven hours on two cores",
    "gpt2": "GPT-2 small: 12 layers, 768 wide, context 1,024, 124 million parameters; 1,000 steps: for a GPU",
}

# A preset changes the defaults above; the command line and the file of settings change the preset.
PRESETS: dict[str, dict[str, Any]] = {
    # One row of logits for each character, so it can learn exactly the frequencies of pairs.
    "bigram": {
        "model": "bigram",
        "batch_size": 128,
        "steps": 1000,
        "eval_iters": 200,
        "learning_rate": 5e-2,
        "min_learning_rate": 0.0,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "grad_clip": 0.0,
    },
    "tiny": {},
    # The family after GPT-2 with as many weights in its matrices as tiny, so with as many operations a step: with half as many heads of
    # keys and values attention has 3/4 of them, and the MLP has 9 instead of 8 times n_embd².
    "modern": {"model": "llama", "n_kv_head": 2, "n_inner": 384},
    # The model of the course (freeCodeCamp, Elliot Arledge), which has its numbers from Karpathy's lecture "Let's build GPT".
    "course": {
        "block_size": 256,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "dropout": 0.2,
        "bias": True,
        "activation": "relu",
        "tied_head": False,
        "head_bias": True,
        "scaled_init": False,
        "batch_size": 64,
        "steps": 5000,
        "learning_rate": 3e-4,
        "schedule": "constant",
        "warmup_steps": 0,
        "beta2": 0.999,
        "weight_decay": 0.01,
        "grad_clip": 0.0,
        "eval_interval": 500,
        "eval_iters": 200,
    },
    # GPT-2 small, 124 million parameters.
    "gpt2": {
        "vocab_size": 50257,
        "block_size": 1024,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "bias": True,
        "activation": "gelu_tanh",
        "batch_size": 4,
        "steps": 1000,
        "learning_rate": 6e-4,
        "min_learning_rate": 6e-5,
        "warmup_steps": 100,
        "beta2": 0.95,
        "eval_iters": 10,
    },
}


# The largest and the last learning rate of an optimizer, where they differ from AdamW's in the preset. Muon's steps are scaled to the size
# of AdamW's, and take its rates where nothing is known. For tiny and modern 0.008 was the best of 0.002, 0.004 and 0.008 in runs of 250
# steps (docs/training.md), where AdamW gains nothing from more than 0.002. SGD's is the best of four in runs of 70 steps.
RATES_OF_OPTIMIZER: dict[str, dict[str, tuple[float, float]]] = {
    "adamw": {},
    "muon": dict.fromkeys(("tiny", "modern"), (8e-3, 4e-4)),
    "sgd": dict.fromkeys(PRESETS, (0.3, 0.015)),
}


def from_preset(name: str, **changes: Any) -> tuple[GPTConfig, TrainConfig]:
    """Both configs of a preset, with ``changes`` to either.

    Raises:
        ValueError: for an unknown preset or setting, naming the nearest known one, and for settings that cannot work.
    """
    require_name("preset", name, PRESETS)
    rates = RATES_OF_OPTIMIZER.get(changes.get("optimizer", "adamw"), {}).get(name)
    own = {} if rates is None else dict(zip(("learning_rate", "min_learning_rate"), rates, strict=True))
    settings = {**PRESETS[name], **own, **changes, "preset": name}
    model_fields, train_fields = GPTConfig.__dataclass_fields__, TrainConfig.__dataclass_fields__
    for setting in settings:
        require_name("setting", setting, (*model_fields, *train_fields))
    return (
        GPTConfig(**{name: value for name, value in settings.items() if name in model_fields and value is not None}),
        # vocab_size is in both: the size that a preset knows its model by is nothing that the training was asked for.
        TrainConfig(
            **{name: value for name, value in settings.items() if name in train_fields and (name not in model_fields or name in changes)}
        ),
    )


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def require_name(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        ValueError: naming the nearest known one, or all.
    """
    known = list(known)
    if name not in known:
        meant = closest_name(name, known)
        raise ValueError(f"unknown {what} {name!r}: " + (f"did you mean {meant!r}?" if meant else f"it is one of {', '.join(known)}."))


def require_types(config: Any) -> None:
    """Refuse a dataclass with a value of another type than its field's: it may come from a file, which is not checked otherwise.

    Raises:
        ValueError: naming the field.
    """
    for name, kind in get_type_hints(type(config)).items():
        require_type(kind, name, getattr(config, name))


def require_type(kind: Any, name: str, value: Any) -> None:
    """Refuse a value of another type. A whole number is a number, too; true and false are none.

    Raises:
        ValueError: naming it.
    """
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    for one in kinds:
        wanted = {int: Integral, float: Real}.get(one, get_origin(one) or one)
        if isinstance(value, wanted) and (one is bool or not isinstance(value, bool)):
            return
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", dict: "an object", NoneType: "null"}
    raise ValueError(f"{name} must be {' or '.join(words.get(one, 'a list of words') for one in kinds)}, got {value!r}.")


def require_at_least(least: int, name: str, value: float) -> None:
    """Refuse a number that is too small, or none at all.

    Raises:
        ValueError: naming it.
    """
    if not value >= least:  # also true of nan
        raise ValueError(f"{name} must be at least {least}, got {value}.")
