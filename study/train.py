"""Train with your gradients:  python -m study train [--steps 50]

The model is `tiny`, its text what Python's help() says. Each page that you have written stands in the place of the book's: forward and
backward, and where you wrote them the walk over the tape, the clipping and AdamW. Beside it a second model trains with the book alone. If
all pages are right, both have the same losses: to the last bit if you wrote the lines of the solutions, for a sum that is added in another
order is rounded otherwise.

    tape        the walk goes over the real tape: an adapter shows its nodes as the exercise has them
    clip        all gradients of the model, which lie in one long array
    adamw       each stretch of the flat buffer
    the others  whenever the model calls that op
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

import tensorlite as tl
from data.dataset import Dataset, open_dataset
from data.loader import RandomBatches
from gpt.config import GPTConfig, RandomStream, TrainConfig, from_preset
from gpt.model import build_model
from gpt.training.trainer import learning_rate_factor
from study.errors import Parser, StudyError
from study.examine import load_page, located
from study.examiner import verdicts
from study.exercise import Exercise, load
from study.screen import Screen, wrapped
from study.verdict import Verdict, WrongPageError
from tensorlite import Tensor, optim
from tensorlite.op import Pair, observe, use_kernels
from tensorlite.optim.clip import gradients_of
from tensorlite.random import make_generator, use_generator
from tensorlite.tape import Node

USED = ("add", "embedding", "linear", "layernorm", "gelu", "attention", "heads", "cross_entropy", "tape", "clip", "adamw")
HEADINGS = {"en": "Train the tiny GPT with your gradients", "zh-TW": "用你寫的梯度訓練小型 GPT"}
LOOKS = 10  # lines of losses

Pages = Mapping[str, SimpleNamespace]  # exercise -> the functions of the student's page


def main(argv: Sequence[str]) -> int:
    """Train two models, one with the student's pages and one with the book's; returns the exit code.

    Raises:
        StudyError: for a page that cannot be used, or a number of steps that makes no sense.
    """
    parser = Parser(prog="python -m study train", description="Train the tiny GPT with the gradients that you have written.")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="updates of the weights (default: 50)")
    steps = parser.parse_args(argv).steps
    if steps < 1:
        raise StudyError(f"--steps must be at least 1, got {steps}.")
    screen = Screen.of_stdout()
    verdict_of = {v.name: v for v in verdicts([(name, load(name).path()) for name in USED if load(name).path().exists()])}
    written = [name for name in USED if name in verdict_of and verdict_of[name].written]
    for name in written:
        if not verdict_of[name].comes_back:
            raise StudyError(f"training cannot begin: {load(name).path()}: {verdict_of[name].says}")
    for line in described(written, verdict_of):
        print(*wrapped(screen.plain(line), screen.width), sep="\n")
    pages = {}
    for name in written:
        try:
            pages[name] = load_page(load(name), load(name).path())[0]
        except WrongPageError as error:
            raise StudyError(f"training cannot begin: {load(name).path()}: {error.says}") from error
    model_config, config = from_preset("tiny", steps=steps)
    dataset = open_dataset(config.data, config.val_fraction)
    same = compare(pages, model_config, config, dataset, screen)
    print("", *wrapped(screen.plain(same), screen.width), sep="\n")
    return 0


def described(written: Sequence[str], verdict_of: Mapping[str, Verdict]) -> Iterator[str]:
    """Which pages take part."""
    if not written:
        yield "none of your pages takes part yet, so both models train with the book: write one of " + ", ".join(USED) + "."
        return
    yield "yours: " + ", ".join(written) + "."
    wrong = [name for name in written if not verdict_of[name].right]
    if wrong:
        yield f"Of these {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} wrong, by python -m study check. See what becomes of it."
    others = [name for name in USED if name not in written]
    if others:
        yield "the book's: " + ", ".join(others) + "."


def compare(pages: Pages, model_config: GPTConfig, config: TrainConfig, dataset: Dataset, screen: Screen) -> str:
    """Train both models, print their losses now and then, and return what came of it in a sentence."""
    book, yours = Run({}, model_config, config, dataset), Run(pages, model_config, config, dataset)
    print(f"\n{'step':>6}{'the book':>12}{'yours':>12}")
    differs_from, furthest = 0, 0.0
    for step in range(1, config.steps + 1):
        theirs, mine = book.update(), yours.update()
        if not differs_from and theirs != mine:
            differs_from = step
        furthest = max(furthest, abs(theirs - mine) if np.isfinite(mine) else np.inf)
        if step == 1 or step == config.steps or not step % max(1, config.steps // LOOKS):
            print(f"{step:>6}{theirs:>12.4f}{mine:>12.4f}", flush=True)
        if not np.isfinite(mine):
            return f"With your pages the loss is {mine} from step {step} on."
    if not differs_from:
        return f"All {config.steps} losses are the same, to the last bit."
    rounding = "as sums do that are added in another order" if furthest < 1e-2 else "which is more than rounding explains"
    return f"The losses differ from step {differs_from} on, at most by {furthest:.1e}, {rounding}."


class Run:
    """One model in training, one step after the other, as `gpt.train` trains it with one worker and the kernels of the book."""

    def __init__(self, pages: Pages, model_config: GPTConfig, config: TrainConfig, dataset: Dataset) -> None:
        self.pages, self.config, self.step = pages, config, 0
        with use_generator(make_generator(config.seed, RandomStream.WEIGHTS)):
            self.model = build_model(replace(model_config, vocab_size=dataset.vocab_size))
        self.parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        kind = AdamWOf.made_of(pages["adamw"]) if "adamw" in pages else optim.AdamW
        self.optimizer = kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
        generator = make_generator(config.seed, RandomStream.BATCHES)
        self.batches = RandomBatches(dataset.train, config.batch_size, model_config.block_size, generator)

    def update(self) -> float:
        """One step: forward, backward, clip, AdamW; returns the loss."""
        x, y = (tl.tensor(ids) for ids in self.batches.next_batch())
        with use_kernels("book"), observe(lambda name, pair: replaced(name, pair, self.pages)), explained(self.pages):
            _, loss = self.model(x, y)
            if "tape" in self.pages:
                walk(self.pages["tape"].walk, loss)
            else:
                loss.backward()
            if "clip" in self.pages:
                clip(self.pages["clip"].clip, self.parameters, self.config.grad_clip)
            else:
                optim.clip_grad_norm_(self.parameters, self.config.grad_clip)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * learning_rate_factor(self.step, self.config)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        return loss.item()


# --- the student's functions in the place of the book's -------------------------------------------------


def replaced(name: str, pair: Pair, pages: Pages) -> Pair:
    """The student's pair for the op ``name``, or the one that was chosen."""
    if name == "causal_self_attention" and {"attention", "heads"} & set(pages):
        solved = {part: load(part).module for part in ("attention", "heads")}
        return _self_attention({**solved, **pages})
    if name in ARRAYS and name in pages:
        return _pair_of(name, pages[name])
    return pair


ARRAYS = {"add": 2, "embedding": 2, "linear": 3, "layernorm": 3, "gelu": 1, "cross_entropy": 2}  # that the page's forward takes


def _pair_of(name: str, page: Any) -> Pair:
    """The page's pair. The tiny model has no biases, and the page is given zeros; the model's other options have their defaults."""
    forward_of, backward_of = getattr(page, f"{name}_forward"), getattr(page, f"{name}_backward")

    def forward(*arguments: Any, **options: Any) -> tuple[Any, Any]:
        arrays = [*arguments, *options.values(), None][: ARRAYS[name]]
        if arrays[-1] is None:
            arrays[-1] = np.zeros(len(arrays[1]), arrays[1].dtype)
        return forward_of(*arrays)

    def backward(dy: Any, saved: Any) -> Any:
        return backward_of(dy, saved)

    return Pair("study", forward, backward)


def _self_attention(pages: Mapping[str, Any]) -> Pair:
    """The model's op cut into the pages that it is made of: three times heads, attention, and heads put together again."""
    cut, join = pages["heads"].heads_forward, pages["heads"].heads_backward
    attend, attend_backward = pages["attention"].attention_forward, pages["attention"].attention_backward

    def forward(qkv: Any, n_head: int, **options: Any) -> tuple[Any, Any]:
        q, k, v = (cut(part, n_head)[0] for part in np.split(qkv, 3, axis=-1))  # (B, H, T, D)
        y, saved = attend(q, k, v)
        return join(y, None), (saved, n_head)

    def backward(dy: Any, saved: Any) -> Any:
        attended, n_head = saved
        dqkv = attend_backward(cut(dy, n_head)[0], attended)
        return np.concatenate([join(part, None) for part in dqkv], axis=-1)

    return Pair("study", forward, backward)


class AdamWOf(optim.AdamW):
    """AdamW whose rule is the student's."""

    rule: Callable[..., None]

    @classmethod
    def made_of(cls, page: Any) -> type[AdamWOf]:
        """The class with the rule of a page."""
        return type("AdamW", (cls,), {"rule": staticmethod(page.adamw)})

    def update(self, group: dict[str, Any], step: int, p: Any, g: Any, *state: Any) -> None:
        self.rule(p, g, *state, step, group["lr"], group["betas"], group["eps"], group["weight_decay"])


def clip(clip_of: Callable[..., tuple[Any, Sequence[Any]]], parameters: Sequence[Tensor], max_norm: float) -> None:
    """Clip the gradients with the student's function: they lie in one array, as the optimizer has laid them."""
    gradients = gradients_of(parameters)
    _, clipped = clip_of(gradients, max_norm)
    for g, short in zip(gradients, clipped, strict=True):
        g[...] = short


class TapeNode:
    """A node of the real tape, or a leaf, as the exercise `tape` has them."""

    def __init__(self, number: int, parents: list[TapeNode], gradients: Callable[[Any], list[Any]], leaf: Any = None) -> None:
        self.number, self.parents, self.gradients, self.leaf = number, parents, gradients, leaf


def walk(walk_of: Callable[..., Mapping[TapeNode, Any]], loss: Tensor) -> None:
    """`loss.backward()` by the student's walk: it says which leaf has which gradient."""
    assert loss.source is not None
    last = shown(loss.source[0])
    for leaf, dx in walk_of(last, np.ones_like(loss.array)).items():
        home = leaf.leaf.grad_buffer  # where the optimizer wants it
        home[...] = dx
        leaf.leaf.grad = Tensor.wrap(home)


def shown(last: Node) -> TapeNode:
    """All nodes behind ``last`` as the exercise has them; no deeper than a loop goes."""
    nodes: dict[int, TapeNode] = {}
    waiting: list[Any] = [last]
    while waiting:
        node = waiting.pop()
        if id(node) in nodes:
            continue
        if not isinstance(node, Node):
            nodes[id(node)] = TapeNode(0, [], lambda dy: [], node)
            continue
        behind = [parent[0][0] if isinstance(parent[0], tuple) else parent[0] for parent in node.parents if parent is not None]
        missing = [one for one in behind if id(one) not in nodes]
        if missing:
            waiting += [node, *missing]
            continue
        nodes[id(node)] = TapeNode(node.number, [nodes[id(one)] for one in behind], backward_of(node))
    leaves = [node for node in nodes.values() if node.leaf is not None]
    for number, leaf in enumerate(leaves, -len(leaves)):
        leaf.number = number  # below all nodes, and no two alike
    return nodes[id(last)]


def backward_of(node: Node) -> Callable[[Any], list[Any]]:
    """dy -> the gradients for those parents that want one."""

    def gradients(dy: Any) -> list[Any]:
        wanted = [parent is not None for parent in node.parents]
        asks = (tuple(wanted),) if node.pair.takes_needs_grad else ()
        dxs = node.pair.backward(dy, node.saved, *asks)
        dxs = dxs if isinstance(dxs, tuple) else (dxs,)
        return [dx for dx, is_wanted in zip(dxs, wanted, strict=False) if is_wanted]

    return gradients


@contextlib.contextmanager
def explained(pages: Pages) -> Iterator[None]:
    """What a page raises in training becomes a sentence with its line; what is raised elsewhere is about what a page returned.

    Raises:
        StudyError: for the first.
    """
    try:
        with contextlib.ExitStack() as stack:
            for name in pages:
                exercise: Exercise = load(name)
                source = exercise.path().read_text(encoding="utf-8") if exercise.path().exists() else ""
                stack.enter_context(located(exercise.path(), source, elsewhere=False))
            yield
    except WrongPageError as error:
        raise StudyError(f"training stops: {error.says}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if not pages:
            raise
        raise StudyError(f"training stops at what a page of yours returned: {error} Check them first: python -m study check.") from error


def listing(screen: Screen, language: str, done: Sequence[str]) -> Iterator[str]:
    """How the pages are trained with."""
    yield screen.styled(HEADINGS[language], "heading")
    yield screen.styled("python -m study train", "dim")
