"""Which test files are repeated where: under other BLAS kernels (`make kernels`) and with the lowest versions (`make lowest`)."""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase

# Every file is numeric except these: a new one is repeated under all kernels unless it is added here. What runs thread by
# thread as a GPU would (cuda_*, kernels_cuda_*, all on the stand-in) calls no BLAS but for its reference in float64, ten digits below what
# is compared; and it takes longer than all the rest. Planted faults, and what programs say, do not depend on the last bits. Runs that
# are stopped and resumed (*_resume), and those of teams (parallel_*, own_loop), are compared with runs under the same kernel, and
# cases_twice compares an op with itself; that a seed fixes a run, gpt_training shows under each.
NOT_NUMERIC = (
    "architecture", "benchmarks", "cases_complete", "cases_twice", "checkpoint*", "classify_cli", "conftest", "console", "context",
    "cuda_*", "data_*", "detokenizer", "docs", "faults", "files", "generate_cli", "gpt_chat", "gpt_classify", "gpt_config", "gpt_duration",
    "gpt_finetune", "gpt_finetune_llama", "gpt_finetune_resume", "gpt_look", "gpt_memory", "gpt_on_gpu", "gpt_optimizers", "gpt_plot",
    "gpt_recorded_decoder",
    "gpt_resume", "gpt_serve", "gpt_speed", "gpt_stopping", "gpt_team", "gpt_tensorboard", "gpt_train", "gpt_train_data", "gpt_trouble",
    "groups", "hostile_weights", "kernels_cuda_*", "lowest", "nccl", "op", "optim_scaler", "options_advice", "own_loop",
    "parallel_*", "random", "ranks", "standin*",
    "strangers", "study_concepts", "study_exercises", "study_lab", "study_program", "study_train", "study_walk", "study_write", "summary",
    "tape", "torch_devices", "torch_files", "torch_opinfo", "wheel", "without_posix",
)  # fmt: skip

# Files, archives, tokenizers, pictures and the command line, which other people's libraries read and write for us.
FORMATS = (
    "checkpoint", "data_bpe", "data_gpt2", "data_prepare", "data_sources", "data_table", "data_tokenizer", "gpt_config", "gpt_plot",
    "gpt_pretrained", "gpt_serve", "gpt_tensorboard", "gpt_train", "wheel",
)  # fmt: skip


@functools.cache
def groups_of(file: str) -> tuple[str, ...]:
    """The markers for all tests in ``file``, such as ``test_tensor.py``."""
    name = file.removeprefix("test_").removesuffix(".py")
    is_in = {"numeric": not any(fnmatchcase(name, one) for one in NOT_NUMERIC), "formats": name in FORMATS}
    return tuple(group for group, inside in is_in.items() if inside)
