"""Asks a downloaded model one thing, as anybody who owns it would: transformers and PEFT.

    python -m marketplace.devstack.ask_model BASE ARTIFACT PROMPT

prints the answer. ARTIFACT is a LoRA adapter or a whole model.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

_MOST_TOKENS = 48


def answer(base: Path, artifact: Path, prompt: str) -> str:
    """The model's greedy answer to one user message."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    is_adapter = (artifact / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(
        base if is_adapter else artifact, dtype=torch.float32
    )
    if is_adapter:
        model = PeftModel.from_pretrained(model, artifact)
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    message = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        said = model.generate(**asked, max_new_tokens=_MOST_TOKENS, do_sample=False)
    return str(
        tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    ).strip()


def main(arguments: list[str]) -> int:
    """Prints the answer; 2 for wrong arguments."""
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    base, artifact, prompt = arguments
    print(answer(Path(base), Path(artifact), prompt))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
