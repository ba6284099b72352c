"""Take a part away, or exchange it, and see what becomes of training:  python -m study lab --without residual,mask --with post-norm

Every variant is the same small GPT. It is trained with the same batches, from the same first weights as far as it has them, and one thing
is different. The table shows the validation loss, and the lengths of the gradients of the first and of the last block: where a part is
missing that carries the gradient back, the first block's gradient fades. `--list` explains each variant.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import tensorlite as tl
from data.dataset import Dataset, open_dataset
from data.loader import RandomBatches
from data.paths import expand_path
from gpt.config import GPTConfig
from gpt.model import GPT, Block, CausalSelfAttention
from gpt.plots.curves import plot_runs
from gpt.plots.figure import FORMATS, can_plot
from study import progress
from study.errors import Parser, StudyError, nearest
from study.screen import Screen, table, wrapped
from tensorlite import Tensor, nn, optim
from tensorlite.nn import functional as F
from tensorlite.random import make_generator, use_generator

KIND = "lab"
SHAPE = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 64}
BATCH_SIZE, LEARNING_RATE, WARM_UP, SEED = 16, 2e-3, 20, 7
LOOKS, EVALUATION_BATCHES = 10, 8
LOST = 0.1  # nats a token above the whole model from which on a part is said to be missed
FADED = 0.1  # of first block to last block, relative to the same in the whole model


@dataclass(frozen=True)
class Parts:
    """What the model is made of, and what trains it; a variant changes one of these."""

    residual: bool = True
    layernorm: bool = True
    scale: bool = True
    positions: bool = True
    mask: bool = True
    mlp: bool = True
    activation: bool = True
    attention: bool = True
    clipping: bool = True
    warmup: bool = True
    post_norm: bool = False
    optimizer: str = "adamw"
    learning_rate: float = LEARNING_RATE
    shape: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One change, and what it is there to show."""

    name: str
    changes: dict[str, Any]
    about: str


WITHOUT = [
    Variant("residual", {"residual": False}, "x = f(x) instead of x = x + f(x). The gradient has no straight way back."),
    Variant("layernorm", {"layernorm": False}, "No normalisation in the blocks and before the head. The scale of x is free."),
    Variant("scale", {"scale": False}, "Scores are not divided by √D. Softmax saturates sooner, and then has hardly a gradient."),
    Variant("positions", {"positions": False}, "No position embedding. Attention sees a set of earlier tokens, not their order."),
    Variant("mask", {"mask": False}, "Attention may look at later tokens. The answer is in the input, and the model cannot write."),
    Variant("mlp", {"mlp": False}, "Blocks of attention alone. Tokens exchange what they know, and nobody works on it."),
    Variant("activation", {"activation": False}, "An MLP without a nonlinearity. Two linear layers are one."),
    Variant("attention", {"attention": False}, "Blocks of MLPs alone. Each token knows itself and its place, like a bigram table."),
    Variant("clipping", {"clipping": False}, "Gradients of any length. One bad batch may make one large step."),
    Variant("warmup", {"warmup": False}, "The full learning rate from the first step, when AdamW has seen one gradient."),
]
WITH = [
    Variant("post-norm", {"post_norm": True}, "norm(x + f(x)), as in the first Transformer. The norm is in the gradient's way."),
    Variant("sgd", {"optimizer": "sgd", "learning_rate": 0.5}, "Gradient descent with a learning rate of 0.5."),
    Variant(
        "momentum", {"optimizer": "momentum", "learning_rate": 0.05}, "Gradient descent with momentum 0.9 and a learning rate of 0.05."
    ),
    Variant("one-head", {"shape": {"n_head": 1}}, "One wide head. As many weights, but one pattern of attention a block."),
    Variant("one-layer", {"shape": {"n_layer": 1}}, "One block. Attention cannot build on what earlier attention found."),
    Variant("relu", {"shape": {"activation": "relu"}}, "relu instead of gelu."),
    Variant("dropout", {"shape": {"dropout": 0.2}}, "Dropout of 0.2. It slows a short run, and helps a long one on little text."),
    Variant("large-rate", {"learning_rate": 0.1}, "A learning rate 50 times as large."),
    Variant("untied", {"shape": {"tied_head": False}}, "A head with weights of its own, not those of the embedding."),
]
WHOLE = Variant("whole", {}, "nothing is changed: what the others are compared with.")


@dataclass
class Outcome:
    """What became of a variant.

    Attributes:
        records: as in a run's metrics.jsonl, for the plot.
        val_loss: at the end, in nats a token; nan if it is no number any more.
        first, last: the length of the gradient of the first and of the last block, the median over the last tenth of the steps.
        stopped: the step at which the loss was no number any more; None if it always was.
    """

    variant: Variant
    records: list[dict[str, float]]
    val_loss: float
    first: float
    last: float
    seconds: float
    stopped: int | None = None


def main(argv: Sequence[str]) -> int:
    """Train the variants side by side; returns the exit code.

    Raises:
        StudyError: for a variant that there is not, and a number of steps that makes no sense.
    """
    parser = Parser(prog="python -m study lab", description="Take parts of a GPT away, train, and see what becomes of it.")
    parser.add_argument("--without", default="", metavar="NAMES", help="parts to take away, each in a run of its own: residual,mask")
    parser.add_argument("--with", default="", dest="with_", metavar="NAMES", help="parts to exchange: post-norm,sgd")
    parser.add_argument("--steps", type=int, default=300, help="updates of the weights in each run (default: 300)")
    parser.add_argument("--data", default="pydoc", help="a text, or what gpt.train takes (default: pydoc)")
    parser.add_argument("--out", metavar="FILE", help="a sheet of curves, .svg or .png")
    parser.add_argument("--list", action="store_true", help="explain each variant, and stop")
    options = parser.parse_args(argv)
    screen = Screen.of_stdout()
    if options.list:
        show(screen, explained(screen))
        return 0
    if options.steps < 2:
        raise StudyError(f"--steps must be at least 2, got {options.steps}.")
    path = expand_path(options.out) if options.out else None
    if path is not None and path.suffix not in FORMATS:
        raise StudyError(f"--out takes a name that ends in {' or '.join(FORMATS)}, got {options.out}.")
    if path is not None and not can_plot():
        raise StudyError("--out needs matplotlib: pip install 'tensorlite[plot]'.")
    variants = [WHOLE, *chosen("without", options.without, WITHOUT), *chosen("with", options.with_, WITH)]
    if len(variants) == 1:
        variants += [one for one in WITHOUT if one.name in ("residual", "layernorm", "positions", "mask")] + [WITH[0]]
    dataset = open_dataset(options.data, 0.1)
    outcomes = []
    for number, variant in enumerate(variants, start=1):
        outcomes.append(outcome := train(variant, dataset, options.steps))
        show(screen, [f"{number} of {len(variants)}  {label(variant)}  {outcome.seconds:.0f} s"])
    show(screen, ["", *report(outcomes, screen)])
    if path is not None:
        plot_runs({label(outcome.variant): outcome.records for outcome in outcomes}, path)
        show(screen, [f"wrote {path}"])
    progress.mark(KIND, "lab")
    return 0


def listing(screen: Screen, language: str, done: Sequence[str]) -> Iterator[str]:
    """The line of this command in the list of everything."""
    title = {"en": "The laboratory: take a part of the GPT away, and train", "zh-TW": "實驗室：拿掉 GPT 的一個部分，再訓練看看"}[language]
    yield screen.styled(screen.plain(f"{title}{' ✔' if done else ''}"), "heading")
    yield screen.styled("python -m study lab --list", "dim")


def explained(screen: Screen) -> Iterator[str]:
    """What each variant is."""
    for option, variants in (("--without", WITHOUT), ("--with", WITH)):
        yield screen.styled(option, "heading")
        for variant in variants:
            yield from wrapped(variant.about, screen.width, f"  {variant.name:<12}")


def chosen(option: str, names: str, known: Sequence[Variant]) -> list[Variant]:
    """The variants that are named, with commas between them.

    Raises:
        StudyError: for one that there is not; it names the nearest.
    """
    by_name = {variant.name: variant for variant in known}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in by_name:
            meant = nearest(name, by_name)
            hint = f"did you mean {meant}?" if meant else f"there are {', '.join(by_name)}."
            raise StudyError(f"--{option} has no {name!r}: {hint} --list explains each.")
    return [by_name[name] for name in dict.fromkeys(wanted)]


def label(variant: Variant) -> str:
    """How it is called in the table."""
    return variant.name if variant is WHOLE else f"{'without' if variant in WITHOUT else 'with'} {variant.name}"


# --- the model, with parts that can be missing ----------------------------------------------------------


class LabAttention(CausalSelfAttention):
    """Attention by its single ops, so that one of them can be left out."""

    def __init__(self, config: GPTConfig, parts: Parts) -> None:
        super().__init__(config)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        q, k, v = (part.reshape(B, T, H, D).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        scores = q @ k.transpose(-2, -1)
        if self.parts.scale:
            scores = scores / math.sqrt(D)
        if self.parts.mask:
            scores = scores.masked_fill(tl.ones(T, T, dtype=tl.bool_).triu(1), -math.inf)
        y = F.softmax(scores, dim=-1) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class LabBlock(Block):
    """A block whose parts can be missing, or stand in another order."""

    def __init__(self, config: GPTConfig, parts: Parts) -> None:
        super().__init__(config)
        self.parts = parts
        if not (parts.scale and parts.mask):
            self.attn = LabAttention(config, parts)
        if not parts.layernorm:
            self.ln_1 = self.ln_2 = nn.Identity()  # type: ignore[assignment]
        if not parts.activation:
            self.mlp.activation = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for is_there, part, norm in ((self.parts.attention, self.attn, self.ln_1), (self.parts.mlp, self.mlp, self.ln_2)):
            if is_there:
                x = self.join(x, part, norm)
        return x

    def join(self, x: Tensor, part: nn.Module, norm: nn.Module) -> Tensor:
        """x + part(norm(x)), or what the variant has in its place."""
        if self.parts.post_norm:
            return norm(x + part(x))
        return x + part(norm(x)) if self.parts.residual else part(norm(x))


def build(config: GPTConfig, parts: Parts) -> GPT:
    """The GPT of a variant. Weights that the whole model has too begin with the same numbers."""
    model = GPT(config)
    weights = model.state_dict()
    model.h = nn.ModuleList([LabBlock(config, parts) for _ in range(config.n_layer)])
    if not parts.layernorm:
        model.ln_f = nn.Identity()  # type: ignore[assignment]
    own = model.state_dict()
    model.load_state_dict({name: weights[name] for name in own})
    if not parts.positions:
        with tl.no_grad():
            model.wpe.weight.zero_()
        model.wpe.weight.requires_grad_(False)
    return model


# --- training ------------------------------------------------------------------------------------------


def train(variant: Variant, dataset: Dataset, steps: int) -> Outcome:
    """One run. A loss that is no number ends it."""
    parts = replace(Parts(), **variant.changes)
    start = time.perf_counter()
    with use_generator(make_generator(SEED, 0)):
        model = build(GPTConfig(vocab_size=dataset.vocab_size, **{**SHAPE, **parts.shape}), parts)
        optimizer = make_optimizer(model, parts)
        batches = RandomBatches(dataset.train, BATCH_SIZE, SHAPE["block_size"], make_generator(SEED, 1))
        records: list[dict[str, float]] = []
        norms: list[tuple[float, float]] = []
        stopped = None
        with np.errstate(all="ignore"):  # a variant may overflow: that is what it shows
            for step in range(steps):
                if step % max(1, steps // LOOKS) == 0:
                    records.append({"step": step, "val_loss": validation_loss(model, dataset)})
                rate = parts.learning_rate * rate_factor(step, steps, parts.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = loss_of(model, *batches.next_batch())
                optimizer.zero_grad()
                loss.backward()
                norms.append((norm_of(model.h[0]), norm_of(model.h[-1])))
                whole = optim.clip_grad_norm_(list(model.parameters()), 1.0 if parts.clipping else math.inf).item()
                records.append({"step": step + 1, "loss": loss.item(), "learning_rate": rate, "gradient_norm": whole})
                if not (math.isfinite(loss.item()) and math.isfinite(whole)):
                    stopped = step + 1
                    break
                optimizer.step()
            val_loss = math.nan if stopped else validation_loss(model, dataset)
    records.append({"step": stopped or steps, "val_loss": val_loss})
    first, last = np.median(norms[-max(1, len(norms) // 10) :], axis=0)
    return Outcome(variant, records, val_loss, float(first), float(last), time.perf_counter() - start, stopped)


def make_optimizer(model: GPT, parts: Parts) -> optim.Optimizer:
    """The variant's optimizer, over what it trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if parts.optimizer == "adamw":
        return optim.AdamW(trained, lr=parts.learning_rate, betas=(0.9, 0.99), weight_decay=0.1)
    return optim.SGD(trained, lr=parts.learning_rate, momentum=0.9 if parts.optimizer == "momentum" else 0.0)


def rate_factor(step: int, steps: int, warmup: bool) -> float:
    """A rise over the first steps, then half a cosine down to a tenth."""
    rise = min(1.0, (step + 1) / WARM_UP) if warmup else 1.0
    return rise * (0.55 + 0.45 * math.cos(math.pi * step / steps))


def loss_of(model: GPT, x: np.ndarray, y: np.ndarray) -> Tensor:
    """The mean loss of a batch, in nats a token."""
    loss = model(tl.tensor(x), tl.tensor(y))[1]
    assert loss is not None
    return loss


def validation_loss(model: GPT, dataset: Dataset) -> float:
    """The mean over the same batches of the validation text every time."""
    batches = RandomBatches(dataset.val, BATCH_SIZE, SHAPE["block_size"], make_generator(SEED, 2))
    model.eval()
    with tl.no_grad():
        total = sum(loss_of(model, *batches.next_batch()).item() for _ in range(EVALUATION_BATCHES))
    model.train()
    return total / EVALUATION_BATCHES


def norm_of(block: nn.Module) -> float:
    """The length of the gradient of all weights of a block."""
    squares = [float((p.grad.array.astype("float64") ** 2).sum()) for p in block.parameters() if p.grad is not None]
    return math.sqrt(sum(squares))


# --- what is said ----------------------------------------------------------------------------------------


def report(outcomes: Sequence[Outcome], screen: Screen) -> Iterator[str]:
    """The table: a line a variant, and what it shows."""
    whole = outcomes[0]
    rows = [("run", "loss", "first block", "last block", "what happened")]
    for outcome in outcomes:
        loss = f"{outcome.val_loss:.3f}" if math.isfinite(outcome.val_loss) else "none"
        rows.append((label(outcome.variant), loss, f"{outcome.first:.2g}", f"{outcome.last:.2g}", verdict(outcome, whole)))
    yield from table(screen.plain("\n".join(f"| {' | '.join(row)} |" for row in rows)), screen.width)
    yield from wrapped(
        "loss: of the validation text, in nats a token. first block, last block: the length of their gradients near the end. "
        "Fading compares their ratio with that in the whole model.",
        screen.width,
    )


def verdict(outcome: Outcome, whole: Outcome) -> str:
    """One sentence that follows from the numbers."""
    if outcome is whole:
        return "the whole model"
    if outcome.stopped is not None:
        return f"diverged: no number any more in step {outcome.stopped}"
    worse = outcome.val_loss - whole.val_loss
    fade = outcome.first / outcome.last / (whole.first / whole.last) if outcome.last and whole.first and whole.last else 1.0
    if worse < 0 and not outcome.variant.changes.get("mask", True):
        said = f"{-worse:.2f} nats better, because it reads the answer"
    elif worse > LOST:
        said = f"{worse:.2f} nats worse"
    elif worse < -LOST:
        said = f"{-worse:.2f} nats better"
    else:
        said = "about the same in a run as short as this"
    if fade < FADED:
        said += f"; the gradient fades on its way to the first block, to {100 * fade:.1g}%"
    return said


def show(screen: Screen, lines: Any) -> None:
    """Print, in signs that the terminal has, at once."""
    for line in lines:
        print(screen.plain(line), flush=True)
