"""LoRA's corrections beside PEFT, both ways, on small random models:  python scripts/compare_peft.py

Needs the test dependencies and PEFT, which brings accelerate: ``pip install peft``. Ends with code 1 if the logits differ by more than
1e-5 of the largest.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpt.checkpoints.loading import load_model
from gpt.checkpoints.peft_adapter import save_peft_adapter
from gpt.model import GPT
from tests.test_gguf import tokenizer
from tests.test_peft_adapter import GPT2, IDS, LLAMA, corrected, logits, model

ALLOWED = 1e-5
THEIR_TARGETS = {"gpt": ["c_attn", "c_proj"], "llama": ["q_proj", "v_proj", "up_proj", "down_proj"]}


def main() -> None:
    """Compare; see the module's docstring."""
    worst = 0.0
    for config in (GPT2, LLAMA):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model(config).save_pretrained(folder / "base", tokenizer())
            ours = corrected(config)
            save_peft_adapter(folder / "ours", ours, base=str(folder / "base"))
            theirs = peft.PeftModel.from_pretrained(their_base(folder), folder / "ours").eval()
            out = difference(logits(ours), theirs)
            torch.manual_seed(0)
            settings = peft.LoraConfig(
                task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules=THEIR_TARGETS[config.model], init_lora_weights=False
            )
            theirs = peft.get_peft_model(their_base(folder), settings).eval()
            theirs.peft_config["default"].base_model_name_or_path = str(folder / "base")
            theirs.save_pretrained(folder / "theirs")
            read, _, _ = load_model(folder / "theirs")
            assert isinstance(read, GPT)
            into = difference(logits(read), theirs)
            print(f"{config.model:<8} written, opened by PEFT: {out:.2g}   written by PEFT, opened here: {into:.2g}   allowed {ALLOWED:g}")
            worst = max(worst, out, into)
    sys.exit(worst > ALLOWED)


def their_base(folder: Path) -> transformers.PreTrainedModel:
    """transformers' model without corrections."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()


def difference(ours: np.ndarray, theirs: torch.nn.Module) -> float:
    """The largest, relative to the largest logit."""
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS)).logits.numpy()
    return float(abs(ours - expected).max() / abs(expected).max())


if __name__ == "__main__":
    main()
