"""Walk backwards through a model:  python -m study walk --checkpoint runs/tiny --prompt "The value of "

The loss is that of the prompt: how surprised the model is by each of its tokens after the ones before. Each screen is one op's backward.
Without a checkpoint a small model with random weights is walked through. ``--html walk.html`` writes all steps as one page for a browser.
"""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tensorlite as tl
from data.errors import DataError
from data.paths import expand_path
from data.tokenizer import CharTokenizer, Tokenizer
from gpt.checkpoints.loading import load_model
from gpt.config import GPTConfig
from gpt.errors import UserError
from gpt.model import GPT, LanguageModel, build_model
from study import progress
from study.errors import Parser, StudyError
from study.heatmap import heat_map
from study.screen import Screen, table, wrapped
from study.torch_twins import compare_with_torch, has_twin
from study.walk_page import page
from tensorlite import random
from tensorlite.backend import to_numpy
from tensorlite.inspect import Comparison, Step, Walk, compare, summary, walk
from tensorlite.inspect.summary import BARS, PLAIN_BARS
from tensorlite.op import REGISTRY

KIND = "walk"
PROMPT = "The value of the gradient is the gradient of the value."
COMMANDS = "Enter: next   b: back   r: rewind   c PLACE: on to an op, module, parameter, norm > 1, not finite   w: why   k: check   q: quit"
TOLERANCE = {"float64": 1e-7, "float32": 1e-3, "float16": 0.05}  # of the largest number: what the dtype leaves of a gradient of many terms


@dataclass
class Passage:
    """What is walked through: a model and the tokens whose loss it is."""

    model: LanguageModel
    tokenizer: Tokenizer
    text: str

    def loss(self) -> tl.Tensor:
        """The mean surprise of each token after those before it, in nats."""
        ids = np.asarray(self.tokenizer.encode(self.text), np.int64)
        if len(ids) < 2:
            raise StudyError(f"a walk needs at least two tokens, and {self.text!r} has {len(ids)}: give a longer --prompt.")
        ids = ids[-self.model.config.block_size - 1 :][None]
        loss = self.model(tl.tensor(ids[:, :-1]), tl.tensor(ids[:, 1:]))[1]
        assert loss is not None
        return loss


def main(argv: Sequence[str]) -> int:
    """Walk at the terminal, or write the page; returns the exit code.

    Raises:
        StudyError: for what the reader can mend.
    """
    parser = Parser(prog="python -m study walk", description="Walk backwards through a model, one op at a time.")
    parser.add_argument("--checkpoint", metavar="DIR", help="a run, or a folder of weights (default: a small model with random weights)")
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="the text whose loss is walked back from")
    parser.add_argument("--html", metavar="FILE", help="write all steps as one page for a browser")
    parser.add_argument("--train-mode", action="store_true", help="with dropout, as in training")
    options = parser.parse_args(argv)
    passage = open_passage(options.checkpoint, options.prompt)
    passage.model.train(options.train_mode)
    steps = walk(passage.loss, model=passage.model)
    if options.html is not None:
        write_page(steps, passage, Path(options.html))
    else:
        Terminal(steps, Screen.of_stdout()).run()
    progress.mark(KIND, "walk")
    return 0


def listing(screen: Screen, language: str, done: Sequence[str]) -> Iterator[str]:
    """The line of this command in the list of everything."""
    title = {"en": "Walk backwards through a model, one op at a time", "zh-TW": "沿著模型往回走，一次一個運算"}[language]
    yield screen.styled(screen.plain(f"{title}{' ✔' if done else ''}"), "heading")
    yield screen.styled("python -m study walk", "dim")


def open_passage(checkpoint: str | None, text: str) -> Passage:
    """The model in ``checkpoint`` and the text; without one, a small model that knows the characters of the text.

    Raises:
        StudyError: if it cannot be opened, or cannot read the text.
    """
    try:
        if checkpoint is None:
            tokenizer = CharTokenizer.train(text + PROMPT)
            config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
            with random.use_generator(random.make_generator(0)):
                return Passage(build_model(config), tokenizer, text)
        model, found, _ = load_model(checkpoint)
        found.encode(text)
        return Passage(model, found, text)
    except (DataError, UserError) as error:
        raise StudyError(str(error)) from error


def write_page(steps: Walk, passage: Passage, path: Path) -> None:
    """Write the walk as HTML.

    Raises:
        StudyError: if the file cannot be written.
    """
    path = expand_path(path)
    kind = "GPT" if isinstance(passage.model, GPT) else "bigram model"
    facts = f"{kind} with {passage.model.num_parameters():,} parameters, loss {steps.result.item():.4f} nats a token"
    described = [describe(step, checks(step)) for step in steps]
    try:
        path.write_text(page(described, steps, passage.text, facts), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{path} cannot be written: {error.strerror}.") from error
    print(f"wrote {path}: {len(described)} steps, {path.stat().st_size / 1e6:.1f} MB. Open it in a browser.")


# --- what a step says ----------------------------------------------------------------------------------


def formula(op: str) -> str:
    """The first paragraph of the page of the book."""
    return python_inspect.cleandoc(REGISTRY[op].book.forward.__doc__ or "").partition("\n\n")[0]


def derivation(op: str) -> str:
    """What the book's backward says of itself."""
    return python_inspect.cleandoc(REGISTRY[op].book.backward.__doc__ or "")


def page_of(op: str) -> str:
    """The file of the book."""
    return REGISTRY[op].__module__.replace(".", "/") + ".py"


def checks(step: Step) -> list[Comparison]:
    """The step's gradients in all other ways that there are."""
    if step.call is None:
        return []
    return [*compare(step), *(compare_with_torch(step) if has_twin(step) else [])]


def is_right(step: Step, found: Comparison) -> bool:
    """Whether the difference is one of rounding."""
    return found.error <= TOLERANCE.get(str(step.dy[0].dtype), 0.05)


def saved_arrays(saved: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays among what a forward kept, with their names where they have some."""
    if hasattr(saved, "_fields"):
        items: Any = zip(saved._fields, saved, strict=True)
    elif isinstance(saved, tuple | list):
        items = ((str(i), value) for i, value in enumerate(saved))
    else:
        items = [("", saved)]
    for name, value in items:
        if hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "size"):
            yield name, to_numpy(value)
        elif isinstance(value, tuple | list):
            yield from ((f"{name}.{inner}".strip("."), array) for inner, array in saved_arrays(value))


def describe(step: Step, found: Sequence[Comparison]) -> dict[str, Any]:
    """A step as text and small arrays, for the page and for the terminal."""
    site = step.site
    return {
        "op": step.op,
        "module": (site.module or "") if site else "",
        "place": str(site) if site else "",
        "code": site.code if site else "",
        "formula": formula(step.op),
        "why": derivation(step.op),
        "page": page_of(step.op),
        "pair": step.node.pair.name,
        "dy": [("dy" if len(step.dy) == 1 else f"dy[{i}]", to_numpy(dy)) for i, dy in enumerate(step.dy)],
        "saved": list(saved_arrays(step.node.saved)),
        "dx": [(f"{_argument_name(step.op, d.argument)} → {d.name}", to_numpy(d.dx)) for d in step.deliveries],
        "queue": [f"{node.name} {node.number}" for node in step.queue],
        "checks": [
            {
                "way": one.way,
                "argument": _argument_name(step.op, one.argument),
                "ours": one.ours,
                "other": one.other,
                "error": one.error,
                "right": is_right(step, one),
            }
            for one in found
        ],
        "introduces_non_finite": step.introduces_non_finite,
        "norm": step.norm,
    }


def _argument_name(op: str, argument: int) -> str:
    """``d`` and the parameter's name in the book: dx, dweight."""
    names = [p.name for p in REGISTRY[op].__signature__.parameters.values() if p.kind is not p.VAR_POSITIONAL]
    return f"d{names[argument]}" if argument < len(names) else f"d{argument}"


# --- the terminal --------------------------------------------------------------------------------------


class Terminal:
    """The walk at a terminal: a line is read, a screen is written. The end of input ends it."""

    def __init__(self, steps: Walk, screen: Screen, read: Callable[[str], str] | None = None) -> None:
        self.steps, self.screen, self.read = steps, screen, read or input

    def run(self) -> None:
        """Read and do commands until the reader leaves."""
        self.show(wrapped(f"The loss is {self.steps.result.item():.4f} nats a token. The walk begins there.", self.screen.width))
        self.show(wrapped(COMMANDS, self.screen.width))
        while True:
            try:
                line = self.read("walk> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line in ("q", "quit"):
                return
            self.show(self.answer(line))

    def answer(self, line: str) -> Iterator[str]:
        """The lines that a command prints."""
        command, _, argument = line.partition(" ")
        match command:
            case "" | "n" | "next":
                yield from self.step(self.steps.forward(), "All gradients have arrived: this is the end of the walk.")
            case "b" | "back":
                yield from self.step(self.steps.back(), "This is the start: nothing has been delivered yet.")
            case "r" | "rewind":
                self.steps.rewind()
                yield "At the start again."
            case "c" | "until":
                yield from self.until(argument)
            case "w" | "why":
                yield from self.why()
            case "k" | "check":
                yield from self.check()
            case _:
                yield from wrapped(f"There is no command {command!r}. {COMMANDS}", self.screen.width)

    def until(self, place: str) -> Iterator[str]:
        """On to a place."""
        try:
            found = self.steps.until(place)
        except ValueError as error:
            yield from wrapped(f"error: {error}", self.screen.width)
            return
        yield from self.step(found, f"There is no step {place!r} between here and the end, where the walk now is.")

    def step(self, step: Step | None, otherwise: str) -> Iterator[str]:
        """One screen."""
        if step is None:
            yield from wrapped(otherwise, self.screen.width)
            return
        width, said = self.screen.width, describe(step, [])
        title = f"step {step.index + 1}  {said['op']}" + (f"  in {said['module']}" if said["module"] else "")
        yield from (self.screen.styled(line, "title") for line in wrapped(title, width))
        if said["code"]:
            yield said["place"]
            yield from wrapped(said["code"], width, "  ")
        yield from wrapped(" ".join(said["formula"].split()), width, "formula    ")
        for label, arrays in (("comes in", said["dy"]), ("was saved", said["saved"]), ("goes out", said["dx"])):
            for i, (name, array) in enumerate(arrays):
                bars = BARS if self.screen.can_show(BARS) else PLAIN_BARS
                yield from wrapped(f"{name}  {summary(array, bars)}".strip(), width, f"{label if not i else '':<11}")
                if label != "was saved" and array.size > 1:
                    yield from ("           " + row for row in heat_map(array, self.screen, max(8, width - 12)))
        waiting = " · ".join(said["queue"][:6]) + (f" · and {len(said['queue']) - 6} more" if len(said["queue"]) > 6 else "")
        yield from wrapped(f"{waiting or 'nothing: this was the last op'}", width, "waiting    ")
        arrived, known = len(self.steps.gradients()), len(self.steps.names)
        yield from wrapped(f"{arrived} of {known} parameters have a gradient" if known else f"{arrived} leaves", width, "delivered  ")

    def why(self) -> Iterator[str]:
        """The derivation on the book's page."""
        step = self.steps.current
        if step is None:
            yield "No op has run yet: press Enter first."
            return
        yield from (self.screen.styled(line, "heading") for line in wrapped(f"{step.op}, from {page_of(step.op)}", self.screen.width))
        yield from (self.screen.plain(line) for line in derivation(step.op).splitlines())

    def check(self) -> Iterator[str]:
        """The step's gradients, computed in other ways."""
        step = self.steps.current
        if step is None:
            yield "No op has run yet: press Enter first."
            return
        rows = [("gradient", "way", "here", "there", "error", "")]
        for one in describe(step, checks(step))["checks"]:
            verdict = "agrees" if one["right"] else "DIFFERS"
            rows.append((one["argument"], one["way"], f"{one['ours']:.6g}", f"{one['other']:.6g}", f"{one['error']:.0e}", verdict))
        yield from table("\n".join(f"| {' | '.join(row)} |" for row in rows), self.screen.width)
        yield from wrapped(
            f"Here is the {step.node.pair.name} pair, which ran. An error is relative to the largest number; differences are slopes.",
            self.screen.width,
        )
        if not has_twin(step):
            yield from wrapped("torch is not asked: it is not installed, or has no such op without random numbers.", self.screen.width)

    def show(self, lines: Any) -> None:
        """Print, in signs that the terminal has."""
        for line in lines:
            print(self.screen.plain(line))
