"""What a long run costs in memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_memory_is_flat_over_two_thousand_steps():
    """In a process of its own, with the cyclic garbage collector off: nothing may even wait to be collected."""
    script = textwrap.dedent("""
        import gc
        gc.disable()
        import numpy as np
        from gpt.config import GPTConfig, TrainConfig
        from gpt.model import build_model
        from gpt.training.trainer import Trainer

        def resident():  # pages in memory
            return int(open("/proc/self/statm").read().split()[1])

        config = GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.1)
        tokens = np.arange(1000) % 11
        trainer = Trainer(build_model(config), TrainConfig(steps=2200, batch_size=4), tokens[:900], tokens[900:])
        for step in range(2200):
            trainer.update()
            if step == 199:
                before = resident()
        print(resident() - before)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 4096 < 1_000_000
