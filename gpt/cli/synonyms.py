"""What an unknown option was probably meant to be: first by what other programs of the field call it, then by its spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Name here: names elsewhere (nanoGPT, llm.c, transformers, torch's examples). A value after a name is part of the advice.
SYNONYMS = {
    "learning-rate": "lr max-lr base-lr",
    "min-learning-rate": "min-lr final-lr",
    "weight-decay": "wd decay l2",
    "grad-clip": "clip clip-grad max-grad-norm max-norm gradient-clip gradient-clipping clip-norm",
    "warmup-steps": "warmup warmup-iters num-warmup-steps",
    "schedule": "scheduler lr-scheduler lr-schedule lr-decay",
    "accumulation": "grad-accum gradient-accumulation gradient-accumulation-steps grad-accum-steps accumulation-steps",
    "batch-size": "bs batch train-batch-size per-device-train-batch-size micro-batch-size",
    "steps": "iters max-iters iterations num-steps max-steps num-iterations total-steps train-steps epochs num-epochs num-train-epochs",
    "eval-interval": "eval-every eval-steps eval-freq val-interval",
    "eval-iters": "eval-batches val-iters",
    "log-interval": "log-every logging-steps print-every",
    "checkpoint-interval": "save-every save-interval save-steps checkpoint-every",
    "keep-last": "save-total-limit keep-checkpoints",
    "sample-interval": "sample-every",
    "sample-length": "sample-tokens",
    "patience": "early-stopping early-stopping-patience",
    "time-limit": "max-time minutes timeout",
    "val-fraction": "val-split val-size test-size test-split validation-split val-ratio",
    "block-size": "ctx context context-length context-size ctx-len seq-len sequence-length max-seq-len max-length n-positions n-ctx",
    "n-layer": "layers num-layers n-layers depth num-hidden-layers",
    "n-head": "heads num-heads n-heads num-attention-heads",
    "n-embd": "dim d-model hidden-size hidden-dim embed-dim embedding-dim width emb-dim n-embed",
    "vocab-size": "vocab n-vocab",
    "dropout": "drop dropout-rate p-drop",
    "tied-head": "tie-weights tie-word-embeddings weight-tying",
    "backend cupy": "gpu cuda use-cuda use-gpu gpus",
    "backend numpy": "cpu no-cuda use-cpu",
    "backend": "device accelerator",
    "precision": "dtype mixed-precision",
    "precision bfloat16": "bf16 amp",
    "precision float16": "fp16 half",
    "cuda-graph": "compile torch-compile cuda-graphs",
    "attention-recompute": "gradient-checkpointing checkpointing recompute",
    "workers": "threads num-workers n-workers jobs num-threads cores",
    "seed": "random-seed random-state",
    "data": "dataset data-dir data-path input input-file corpus train-file train-data text file",
    "prompt": "input text start",
    "prompt-file": "file input-file",
    "file": "input input-file data texts",
    "out": "out-dir output output-dir outdir save save-dir run-name name dir",
    "checkpoint": "model model-path ckpt model-dir load from base-model init-from run pretrained weights",
    "max-new-tokens": "length max-tokens max-length num-tokens tokens n-tokens new-tokens",
    "temperature": "temp",
    "num-samples": "samples n-samples num-return-sequences",
    "repetition-penalty": "penalty repeat-penalty",
    "lora-rank": "rank lora-r lora lora-dim",
    "lora-alpha": "alpha",
    "lora-targets": "target-modules lora-modules",
    "freeze-blocks": "freeze freeze-layers",
    "resume": "resume-from resume-from-checkpoint continue restart",
    "profile": "profiler prof",
    "tensorboard": "logdir log-dir tb",
}


def meant(name: str, known: Iterable[str]) -> str | None:
    """The option among ``known`` that ``name`` was probably meant to be, as it is written here; None if nothing is near.

    Both may have dashes before them or not, and ``_`` for ``-``, as in a file of settings; the advice is written as ``known`` is.
    """
    written = {_plain(option): option for option in known}
    wanted = _plain(name)
    for advice, elsewhere in SYNONYMS.items():
        option, _, value = advice.partition(" ")
        if wanted in elsewhere.split() and option in written:
            return f"{written[option]} {value}".strip()
    near = difflib.get_close_matches(wanted, written, n=1, cutoff=0.6)
    return written[near[0]] if near else None


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()
