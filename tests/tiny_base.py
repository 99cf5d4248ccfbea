"""A base model small enough for tests: a Llama of some 100,000 weights over bytes, and a dataset.

Written without torch (0.1 s), so that tests of the market can have one, too.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_HIDDEN, _INNER, _LAYERS, _HEADS, _KV_HEADS = 64, 172, 2, 4, 2
_SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
_VOCABULARY = 256 + len(_SPECIAL)
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "vocab_size": _VOCABULARY,
    "hidden_size": _HIDDEN,
    "intermediate_size": _INNER,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}


def write(folder: Path, *, seed: int = 0, chat: bool = True) -> Path:
    """A base in `folder`, the same for the same seed; `chat` gives it a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder)
    if chat:
        (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return folder


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """The weights by Hugging Face's names."""
    chance = np.random.default_rng(seed)

    def normal(rows: int, columns: int) -> np.ndarray:
        return (0.05 * chance.standard_normal((rows, columns))).astype(np.float32)

    ones = np.ones(_HIDDEN, dtype=np.float32)
    small = _HIDDEN * _KV_HEADS // _HEADS
    found = {"model.embed_tokens.weight": normal(_VOCABULARY, _HIDDEN), "model.norm.weight": ones}
    for layer in range(_LAYERS):
        found |= {
            f"model.layers.{layer}.{name}.weight": value
            for name, value in {
                "input_layernorm": ones,
                "self_attn.q_proj": normal(_HIDDEN, _HIDDEN),
                "self_attn.k_proj": normal(small, _HIDDEN),
                "self_attn.v_proj": normal(small, _HIDDEN),
                "self_attn.o_proj": normal(_HIDDEN, _HIDDEN),
                "post_attention_layernorm": ones,
                "mlp.gate_proj": normal(_INNER, _HIDDEN),
                "mlp.up_proj": normal(_INNER, _HIDDEN),
                "mlp.down_proj": normal(_HIDDEN, _INNER),
            }.items()
        }
    return found


def write_dataset(folder: Path, *, rows: int = 64, held_out: int = 8) -> Path:
    """Sums of two digits, as prompt and completion."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"prompt": f"{a}+{b}", "completion": f"is {a + b}"}) + "\n"
        for a, b in (divmod(n * 37 % 100, 10) for n in range(rows + held_out))
    ]
    (folder / "heldout.jsonl").write_text("".join(lines[:held_out]))
    (folder / "train.jsonl").write_text("".join(lines[held_out:]))
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Every byte is a token; no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: n for n, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "pad_token": "<|pad|>",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
