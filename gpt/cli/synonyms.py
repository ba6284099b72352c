"""Advice on an unknown option: first by the names that other programs of the field use, then by its spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Our name: names elsewhere (nanoGPT, llm.c, transformers, torch's examples). A value after our name is part of the advice; name=value
# elsewhere is a name with that value.
SYNONYMS = {
    "learning-rate": "lr max-lr base-lr",
    "min-learning-rate": "min-lr final-lr",
    "weight-decay": "wd decay l2",
    "optimizer": "optim optimiser opt",
    "grad-clip": "clip clip-grad max-grad-norm max-norm gradient-clip gradient-clipping clip-norm",
    "warmup-steps": "warmup warmup-iters num-warmup-steps",
    "schedule": "scheduler lr-scheduler lr-schedule lr-decay",
    "accumulation": "grad-accum gradient-accumulation gradient-accumulation-steps grad-accum-steps accumulation-steps",
    "batch-size": "bs batch train-batch-size per-device-train-batch-size micro-batch-size",
    "steps": "iters max-iters iterations num-steps max-steps num-iterations total-steps train-steps epochs num-epochs num-train-epochs",
    "eval-interval": "eval-every eval-steps eval-freq val-interval",
    "eval-iters": "eval-batches val-iters",
    "log-interval": "log-every logging-steps print-every",
    "checkpoint-interval": "save-every save-interval save-steps checkpoint-every always-save-checkpoint",
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
    "backend cupy": "gpu cuda use-cuda use-gpu gpus device=cuda device=cuda:0 device=gpu accelerator=gpu accelerator=cuda",
    "backend numpy": "cpu no-cuda use-cpu device=cpu accelerator=cpu",
    "backend": "device accelerator",
    "precision": "dtype mixed-precision",
    "precision float32": "fp32 dtype=fp32",
    "precision bfloat16": "bf16 amp dtype=bf16",
    "precision float16": "fp16 half dtype=fp16",
    "cuda-graph": "compile torch-compile cuda-graphs",
    "attention-recompute": "gradient-checkpointing checkpointing recompute",
    "workers": "threads num-workers n-workers jobs num-threads cores",
    "seed": "random-seed random-state",
    "data": "dataset data-dir data-path input input-file corpus train-file train-data text file",
    "prompt": "input text start",
    "prompt-file": "file input-file",
    "file": "input input-file data texts",
    "out": "out-dir output output-dir outdir save save-dir run-name name dir",
    "checkpoint": "model model-path ckpt model-dir load from base-model init-from run pretrained weights model-name-or-path",
    "max-new-tokens": "length max-tokens max-length num-tokens tokens n-tokens new-tokens",
    "temperature": "temp",
    "num-samples": "samples n-samples num-return-sequences",
    "repetition-penalty": "penalty repeat-penalty",
    "lora-rank": "rank lora-r lora lora-dim",
    "lora-alpha": "alpha",
    "lora-targets": "target-modules lora-modules",
    "freeze-blocks": "freeze freeze-layers",
    "resume": "resume-from resume-from-checkpoint continue restart init-from=resume init-from",
    "profile": "profiler prof",
    "tensorboard": "logdir log-dir tb",
}


def advice_for(name: str, known: Iterable[str], value: str | None = None) -> str:
    """What to say of an unknown option: which of the ``known`` ones was probably meant, or where they are listed.

    Names may have dashes before them or not, and ``_`` for ``-``, as in a file of settings; the advice is written as ``known`` is.

    Args:
        value: what was given for it, if anything.
    """
    meant = _meant(name, list(known), value)
    return f"did you mean {meant}?" if meant else "see --help."


def _meant(name: str, known: list[str], value: str | None) -> str | None:
    written = {_plain(option): option for option in known}
    wanted = _plain(name)
    is_synonym = False
    for wanted_here in ([f"{wanted}={value}"] if value else []) + [wanted]:
        for advice, elsewhere in SYNONYMS.items():
            option, _, its_value = advice.partition(" ")
            if wanted_here in elsewhere.split():
                is_synonym = True
                if option in written:
                    return f"{written[option]} {its_value}".strip()
    if is_synonym:
        return None  # what it means is known, and this program has nothing of the kind: a similar spelling would mislead
    near = difflib.get_close_matches(wanted, written, n=1, cutoff=0.75)
    return written[near[0]] if near else None


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()
