"""Teach a trained model something more:  python -m gpt.finetune --checkpoint runs/tiny --data my.txt

    python -m gpt.finetune --checkpoint runs/tiny --data plays.txt                     another text
    python -m gpt.finetune --checkpoint runs/tiny --data answers.jsonl                 to answer (see gpt.finetuning.instructions)
    python -m gpt.finetune --checkpoint runs/tiny --data reviews.csv --task classify   to tell texts apart (see gpt.finetuning.classifier)

    … --lora-rank 8                      learn a small correction instead of all weights (see gpt.finetuning.lora)
    … --freeze-blocks 3                  leave the embeddings and the first three blocks as they are
    … --train-only "*ln_*" "h.3.*"       leave everything as it is but the parameters of these names

    python -m gpt.finetune --resume runs/finetuned                                     go on after a stop, exactly

What is new pushes out what was known. So at the end there is a table: the loss on the new and on the old validation text, before and after.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt.cli.options import parse_settings
from gpt.errors import leave, run_main
from gpt.finetuning.config import FINETUNING
from gpt.finetuning.run import Finetuning
from gpt.training.resume import folder_to_resume
from tensorlite.memory import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Finetune as the options say; returns the exit code.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can mend; most of it shows before the first step.
    """
    given = parse_settings(argv, FINETUNING)
    resumed = given.pop("resume", None)
    run = Finetuning.new(given) if resumed is None else Finetuning.resume(folder_to_resume(resumed, given), given)
    return run.run()


if __name__ == "__main__":
    keep_freed_memory()  # here, since it holds for the whole process, and this is the one that was started to train
    leave(run_main(main))
