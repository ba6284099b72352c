"""Import every module, train a few steps and generate a text, in the current folder: for an environment without the tests."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys

TINY = [
    "--n-layer=1",
    "--n-head=2",
    "--n-embd=16",
    "--block-size=16",
    "--batch-size=4",
    "--steps=4",
    "--eval-iters=1",
    "--sample-length=10",
]


OF_EXTRAS = {"tensorlite.utils.tensorboard": "tensorboardX", "gpt.serving.": "fastapi"}  # which are not installed everywhere


def main() -> None:
    """Print nothing if everything succeeds."""
    for name in ("tensorlite", "gpt", "data", "study"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            needed = next((package for start, package in OF_EXTRAS.items() if module.name.startswith(start)), name)
            if importlib.util.find_spec(needed):
                importlib.import_module(module.name)
    python = [sys.executable, "-W", "error", "-m"]
    for command in (
        ["gpt.train", *TINY, "--out=runs/smoke"],
        ["gpt.train", "--resume=runs/smoke", "--steps=6"],
        ["gpt.generate", "--checkpoint=runs/smoke", "--prompt=The ", "--max-new-tokens=10"],
    ):
        done = subprocess.run([*python, *command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
