"""What can be chosen for finetuning: whom to teach, what, and which weights may change. How is `gpt.config.TrainConfig`, as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.cli.options import Group
from gpt.config import TrainConfig, option, require_name, require_types
from gpt.finetuning.classifier import POOLINGS
from gpt.finetuning.lora import TARGETS

TASKS = ("text", "instruct", "classify")
UNKNOWN = ("error", "skip", "replace")


@dataclass(frozen=True)
class FinetuneConfig:
    """One field for each option.

    Raises:
        ValueError: for a setting that cannot work, or two that exclude each other.
    """

    checkpoint: str | None = option(None, "a folder that python -m gpt.train has written, or a GPT-2 of Hugging Face's")
    data: str | None = option(None, "a text, a prepared folder, or examples: .jsonl or .csv")
    task: str | None = option(None, "text, instruct or classify; without one, text, and for examples what they look like")
    old_data: str | None = option(None, "the text to measure forgetting on; without one, what the checkpoint was trained on")
    unknown: str = option("error", "characters that the tokenizer never saw: error, skip or replace")
    template: str | None = option(None, "instruct: JSON with other marks than '### User:'; without one, the checkpoint's, if it has one")
    packing: bool = option(False, "instruct: true: put several short conversations into one row, instead of padding each")
    pooling: str = option("mean", "classify: read the mean over the text, or its last token")
    dropout: float | None = option(None, "share of the activations set to zero while training; without a number, as in the checkpoint")
    freeze_blocks: int = option(0, "leave the embeddings and the first so many blocks as they are")
    train_only: Sequence[str] | None = option(None, 'leave everything as it is but the parameters of these names: "*ln_*" "h.3.*"')
    lora_rank: int | None = option(None, "leave all weights as they are, and learn corrections of this rank to some")
    lora_alpha: float | None = option(None, "how much corrections count: they are multiplied by alpha / rank; without a number, by 2")
    lora_targets: str = option(",".join(TARGETS), "which layers get a correction, with commas")

    def __post_init__(self) -> None:
        require_types(self)
        if self.task is not None:
            require_name("task", self.task, TASKS)
        require_name("pooling", self.pooling, POOLINGS)
        require_name("way with unknown characters", self.unknown, UNKNOWN)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_targets != ",".join(TARGETS)):
            raise ValueError("--lora-alpha and --lora-targets need --lora-rank, which says how large the corrections are.")
        ways = {"--freeze-blocks": self.freeze_blocks, "--train-only": self.train_only, "--lora-rank": self.lora_rank is not None}
        chosen = [name for name, value in ways.items() if value]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: each says what is trained.")


# What differs from training from the beginning: there is less to learn, and much to lose.
DEFAULTS: Mapping[str, Any] = {
    "steps": 300, "warmup_steps": 20, "schedule": "cosine", "eval_interval": 100, "sample_length": 200, "out": "runs/finetuned",
}  # fmt: skip

GROUPS = (
    Group("what is taught, to whom, and which weights may change", FinetuneConfig),
    Group(
        "how it is taught",
        TrainConfig,
        defaults={**DEFAULTS, "learning_rate": "a tenth of pretraining's", "min_learning_rate": "a tenth of the learning rate"},
        without={"data", "preset", "tokenizer", "vocab_size"},  # the checkpoint has decided these
    ),
)
