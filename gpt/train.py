"""Train a model:  python -m gpt.train

With no options this takes three minutes on two cores, and ends with a sample of the model's text. Every option is a field of the
dataclasses in `gpt.config`, see --help.

    python -m gpt.train --data my.txt --steps 500 --out runs/mine
    python -m gpt.train --data a-folder-from-data.prepare
    python -m gpt.train --preset course --config my.yaml --dropout 0
    python -m gpt.train --resume runs/mine
    python -m gpt.train --preset course --profile
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpt.cli.options import PRINTS_NEW, TRAINING, make_configs, parse_settings
from gpt.config import TrainConfig
from gpt.errors import fail, leave
from gpt.training.pretraining import Pretraining
from gpt.training.ranks import require_same_program, run_on_ranks
from gpt.training.resume import folder_to_resume
from gpt.training.team import join_ranks
from gpt.training.trainer import Trainer
from tensorlite.memory import keep_freed_memory
from tensorlite.profile import Profile

WARM_UP = 3  # steps before those that are profiled


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the options say; return the exit code.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct; most of it before the first step.
    """
    world = join_ranks(TrainConfig())
    with world.together():
        given = parse_settings(argv)
    require_same_program(world, given)
    resumed, profiled = given.pop("resume", None), given.pop("profile", None)
    if given.pop("print_config", False):
        if resumed is not None:
            fail(PRINTS_NEW)
        print(TRAINING.settings(*reversed(make_configs(given))))
        return 0
    if resumed is not None:
        run = Pretraining.resume(folder_to_resume(resumed, given), given)
    elif profiled is not None:
        if world.size > 1:
            fail("--profile shows the ops of one process: leave mpiexec out.")
        model_config, config = make_configs(given)
        return _profile(
            Pretraining(model_config, replace(config, cuda_graph=False, team="threads")).trainer, profiled
        )  # where ops can be timed
    else:
        run = Pretraining.new(*make_configs(given))
    return run.run()


def _profile(trainer: Trainer, steps: int) -> int:
    """Say where the time of some steps goes; nothing is kept."""
    if steps < 1:
        fail(f"--profile takes a number of steps, at least 1, got {steps}.")
    with trainer.workers:
        for _ in range(WARM_UP):
            trainer.update()
        with Profile(trainer.workers.count) as profile:
            for _ in range(steps):
                trainer.update()
    speed = steps * trainer.tokens_per_step / profile.seconds
    print(f"{steps} steps of {trainer.tokens_per_step:,} tokens: {speed:,.0f} tokens a second\n\n{profile.table()}")
    return 0


if __name__ == "__main__":
    keep_freed_memory()  # here, since it holds for the whole process, and this is the one that was started to train
    leave(run_on_ranks(main))
