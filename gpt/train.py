"""Train a model:  python -m gpt.train

With no options this takes two minutes on two cores, and ends with a sample of what the model has learnt to write. Every option is a
field of the dataclasses in `gpt.config`, see --help.

    python -m gpt.train --data my.txt --steps 500 --out runs/mine
    python -m gpt.train --data a-folder-from-data.prepare
    python -m gpt.train --preset course --config my.yaml --dropout 0
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data.dataset import Dataset, open_dataset
from data.tokenizer import Tokenizer
from gpt.checkpoint import CheckpointError, save_model
from gpt.config import TrainConfig
from gpt.counting import counted_bigram_loss
from gpt.errors import EXIT_INTERRUPTED, fail, run_main
from gpt.inference import stream_text
from gpt.model import LanguageModel, build_model
from gpt.options import parse_options
from gpt.run_folder import RunFolder
from gpt.stopping import Stopped
from gpt.trainer import SAMPLE, WEIGHTS, Trainer
from tensorlite.backend import Device
from tensorlite.memory import keep_freed_memory
from tensorlite.op import kernel_table
from tensorlite.random import make_generator, use_generator


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the options say; returns the exit code.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can mend; most of it shows before the first step.
    """
    model_config, config = parse_options(argv, "python -m gpt.train", "Train a GPT on a text, and read what it writes.")
    _require_device(config.backend)

    dataset = open_dataset(config.data, config.val_fraction, config.tokenizer, config.vocab_size)
    tokenizer, tokens = dataset.tokenizer, (dataset.train, dataset.val)
    with use_generator(make_generator(config.seed, WEIGHTS)):
        model = build_model(replace(model_config, vocab_size=dataset.vocab_size)).to(device=config.backend)
    trainer = Trainer(model, config, *tokens)
    folder = RunFolder(Path(config.out or f"runs/{config.preset}"))

    def save() -> None:
        save_model(folder.path, model, tokenizer, config, step=trainer.step, **asdict(trainer.last) if trainer.last else {})

    save()  # a disk without room shows now, not when all the work is done
    trainer.folder, trainer.keep = folder, lambda: _warn_instead(save)
    print(_describe(dataset, trainer, folder))
    try:
        trainer.train()
    except Stopped:
        save()
        print(f"\nStopped after step {trainer.step} of {config.steps}. The weights are saved in {folder.path}.")
        return EXIT_INTERRUPTED
    save()
    if model.config.model == "bigram":
        print(f"Counting pairs in the training text gives validation loss {counted_bigram_loss(*tokens, tokenizer.vocab_size):.4f}.")
    folder.plot()
    print(f"\nWeights, tokenizer and metrics are in {folder.path}: python -m gpt.generate --checkpoint {folder.path}\n")
    _write_sample(model, tokenizer, config)
    return 0


def _warn_instead(save: Callable[[], None]) -> None:
    """In the middle of a run, weights that cannot be saved are worth a warning: there may be room again at the end."""
    try:
        save()
    except CheckpointError as error:
        print(f"\nwarning: {error} Training goes on.", file=sys.stderr)


def _require_device(backend: str) -> None:
    """Raises UserError for an unknown backend, DeviceUnavailableError for one that does not work here."""
    try:
        device = Device(backend)
    except ValueError as error:
        fail(str(error))
    device.asarray(0)  # the first array asks the driver


def _describe(dataset: Dataset, trainer: Trainer, folder: RunFolder) -> str:
    """What is about to happen, as a table."""
    model, config = trainer.model, trainer.config
    shape = model.config
    layers = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, block {shape.block_size}"
    faster = {name: pairs[0] for name, pairs in kernel_table().items() if pairs[0] != "book"}
    workers = trainer.workers.count
    where = f"{workers} workers" if config.backend == "numpy" else config.backend
    rows = {
        "corpus": dataset.summary,
        "first line": dataset.first_line[:100],
        "model": f"{'bigram table' if shape.model == 'bigram' else layers}: {model.num_parameters():,} parameters",
        "training": f"{config.steps:,} steps of {config.batch_size} x {shape.block_size} tokens by {where}, seed {config.seed}",
        "ops": ", ".join([f"{name}: {pair}" for name, pair in faster.items()] + ["all others: book" if faster else "all from the book"]),
        "folder": f"{folder.path}" + (f" ({folder.wanted} is taken)" if folder.path != folder.wanted else ""),
    }
    return "\n".join([f"{name:<12}{text}" for name, text in rows.items()] + list(dataset.notes)) + "\n"


def _write_sample(model: LanguageModel, tokenizer: Tokenizer, config: TrainConfig) -> None:
    """Let the model show what it has learnt."""
    generator = make_generator(config.seed, SAMPLE)
    for piece in stream_text(model, tokenizer, max_new_tokens=config.sample_length, generator=generator):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    keep_freed_memory()  # here, since it holds for the whole process, and this is the one that was started to train
    sys.exit(run_main(main))
