"""Train a trained model further:  python -m gpt.finetune --checkpoint runs/tiny --data my.txt

    python -m gpt.finetune --checkpoint runs/tiny --data plays.txt                     another text
    python -m gpt.finetune --checkpoint runs/tiny --data answers.jsonl                 to answer (see gpt.finetuning.instructions)
    python -m gpt.finetune --checkpoint runs/tiny --data reviews.csv --task classify   to classify texts (see gpt.finetuning.classifier)

    … --lora-rank 8                      train a low-rank correction instead of all weights (see gpt.finetuning.lora)
    … --freeze-blocks 3                  do not train the embeddings and the first three blocks
    … --train-only "*ln_*" "h.3.*"       train only the parameters with these names

    python -m gpt.finetune --resume runs/finetuned                                     continue a run that was stopped

A model that learns a new text forgets part of the old one. A table at the end shows the loss on both validation texts, before and after.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt.cli.options import PRINTS_NEW, parse_settings
from gpt.config import TrainConfig
from gpt.errors import fail, leave
from gpt.finetuning.config import FINETUNING
from gpt.finetuning.run import Finetuning, resolve_settings
from gpt.training.ranks import require_same_program, run_on_ranks
from gpt.training.resume import folder_to_resume
from gpt.training.team import join_ranks
from tensorlite.memory import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Finetune as the options say; return the exit code.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct; most of it before the first step.
    """
    world = join_ranks(TrainConfig())
    with world.together():
        given = parse_settings(argv, FINETUNING)
    require_same_program(world, given)
    resumed = given.pop("resume", None)
    if given.pop("print_config", False):
        if resumed is not None:
            fail(PRINTS_NEW)
        options, config, _ = resolve_settings(given)
        print(FINETUNING.settings(options, config))
        return 0
    run = Finetuning.new(given) if resumed is None else Finetuning.resume(folder_to_resume(resumed, given), given)
    return run.run()


if __name__ == "__main__":
    keep_freed_memory()  # here, since it holds for the whole process, and this is the one that was started to train
    leave(run_on_ranks(main))
