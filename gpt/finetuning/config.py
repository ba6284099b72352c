"""The settings of finetuning: the model, the data, and which weights are trained. How they are trained is in `gpt.config.TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.cli.options import TRAINING_TOPICS, Program
from gpt.config import TrainConfig, option, require_name, require_types
from gpt.finetuning.classifier import POOLINGS
from gpt.finetuning.lora import TARGETS

TASKS = ("text", "instruct", "classify")
UNKNOWN = ("error", "skip", "replace")


@dataclass(frozen=True)
class FinetuneConfig:
    """The settings that only finetuning has.

    Raises:
        ValueError: for a setting that cannot work, or two that exclude each other.
    """

    checkpoint: str | None = option(None, "a folder that gpt.train or gpt.finetune has written, or a GPT-2 in Hugging Face's format")
    data: str | None = option(None, "a text, a prepared folder, or examples in a .jsonl or .csv file")
    task: str | None = option(None, "text, instruct or classify (default: what the data looks like)")
    old_data: str | None = option(None, "text on which forgetting is measured (default: what the checkpoint was trained on)")
    unknown: str = option("error", "what to do with characters that the tokenizer does not know: error, skip or replace")
    template: str | None = option(None, "for instruct: a JSON file with other marks than '### User:' (default: the checkpoint's)")
    context: int | None = option(None, "tokens in a row, for models with rotary positions (default: the model's context, at most 1,024)")
    packing: bool = option(False, "for instruct: true puts several short conversations into one row instead of padding each")
    pooling: str = option("mean", "for classify: what the label is read from, the mean over the text or its last token: mean or last")
    dropout: float | None = option(None, "probability of setting an activation to zero during training (default: as in the checkpoint)")
    freeze_blocks: int = option(0, "do not train the embeddings and the first N blocks")
    train_only: Sequence[str] | None = option(None, 'train only the parameters with these names, such as "*ln_*" "h.3.*"')
    lora_rank: int | None = option(None, "LoRA: do not train the weights, but corrections of this rank to some matrices")
    lora_alpha: float | None = option(None, "LoRA: corrections are multiplied by alpha / rank (default: twice the rank)")
    lora_targets: str = option(",".join(TARGETS), "LoRA: which layers get a correction, separated by commas")

    def __post_init__(self) -> None:
        require_types(self)
        if self.task is not None:
            require_name("task", self.task, TASKS)
        require_name("pooling", self.pooling, POOLINGS)
        require_name("way with unknown characters", self.unknown, UNKNOWN)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")
        if self.context is not None and self.context < 1:
            raise ValueError(f"context must be at least 1, got {self.context}.")
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_targets != ",".join(TARGETS)):
            raise ValueError("--lora-alpha and --lora-targets need --lora-rank, which says how large the corrections are.")
        selections = {"--freeze-blocks": self.freeze_blocks, "--train-only": self.train_only, "--lora-rank": self.lora_rank is not None}
        chosen = [name for name, value in selections.items() if value]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: each says what is trained.")


# Defaults that differ from those of pretraining: finetuning is shorter, and changes the weights less.
DEFAULTS: Mapping[str, Any] = {
    "steps": 300, "warmup_steps": 20, "schedule": "cosine", "eval_interval": 100, "sample_length": 200, "out": "runs/finetuned",
}  # fmt: skip

FINETUNING = Program(
    "gpt.finetune",
    "Train a trained model further: on another text, to answer, or to classify texts.",
    (FinetuneConfig, TrainConfig),
    {
        "most common": ("checkpoint", "data", "task", "steps", "batch_size", "learning_rate", "lora_rank", "out"),
        "runs and settings": ("resume", "config", "print_config"),
        "data": ("context", "unknown", "template", "packing", "pooling", "val_fraction", "old_data"),
        "which weights are trained": ("freeze_blocks", "train_only", "lora_alpha", "lora_targets", "dropout"),
        **TRAINING_TOPICS,
    },
    without={"preset", "tokenizer", "vocab_size"},  # the checkpoint has decided these
    defaults={**DEFAULTS, "learning_rate": "a tenth of pretraining's", "min_learning_rate": "a tenth of the learning rate"},
)
