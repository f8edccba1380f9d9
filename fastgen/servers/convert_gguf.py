"""Convert a Llama-family GGUF file with a byte-level BPE vocabulary into a Hugging Face model folder.

A script of its own: ``python convert_gguf.py MODEL.gguf FOLDER`` runs in the embedded server's environment (it needs
``gguf`` and ``numpy``) and knows nothing of fastgen. Weights are dequantised and written as bfloat16;
configuration, tokenizer and chat template come from the file's own metadata. Anything the file asks for that this
conversion does not know ends it with a message, never with a folder that is subtly wrong.

Sources: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) for names and metadata keys; llama.cpp's
converter interleaves the two halves of every query and key head for its own rotary embedding, which is undone here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (  # type: ignore[import-not-found,import-untyped,unused-ignore]  # in the server's environment only
    GGUFReader,
    dequantize,
)

PRE_TOKENIZER = "smollm"
"""llama.cpp's name for: every digit by itself, then GPT-2's byte-level split."""
CONTROL_TOKEN, USER_TOKEN = 3, 4
TOP_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_TENSORS = {
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

Array = np.ndarray[Any, np.dtype[Any]]


def hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``; an unknown name ends the conversion."""
    parts = name.split(".")
    if parts[-1] == "weight" and len(parts) == 2 and parts[0] in TOP_TENSORS:  # noqa: PLR2004  # name.weight
        return f"{TOP_TENSORS[parts[0]]}.weight"
    if parts[-1] == "weight" and len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_TENSORS:  # noqa: PLR2004  # blk.N.name.weight
        return f"model.layers.{parts[1]}.{LAYER_TENSORS[parts[2]]}.weight"
    sys.exit(f"convert_gguf: unknown tensor {name}")


def undo_head_interleave(weight: Array, heads: int) -> Array:
    """Rows back in Hugging Face's order (all first halves of a head's rotary pairs, then the second); same shape."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def to_bfloat16_bits(weight: Array) -> Array:
    """Float32 → the 16 bits of the nearest bfloat16 (ties to even); finite input only."""
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(tensors: dict[str, Array], path: Path) -> None:
    """Write bfloat16 bits by name: the header's length, a JSON header padded to 8 bytes, then the data end to end.

    Written out here because numpy has no bfloat16, and importing torch for it would double the conversion's time.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            file.write(bits.tobytes())


def convert_weights(reader: GGUFReader, heads: int, kv_heads: int, target: Path) -> bool:
    """Write ``model.safetensors``; true if the output layer has weights of its own (not tied to the embedding)."""
    tensors: dict[str, Array] = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            weight = undo_head_interleave(weight, heads)
        elif ".attn_k." in tensor.name:
            weight = undo_head_interleave(weight, kv_heads)
        tensors[hugging_face_name(tensor.name)] = to_bfloat16_bits(weight)
    write_safetensors(tensors, target / "model.safetensors")
    return "lm_head.weight" in tensors


def model_config(meta: dict[str, Any], *, untied: bool) -> dict[str, Any]:
    """``config.json`` of a ``LlamaForCausalLM``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": meta["llama.rope.freq_base"],
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": not untied,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def tokenizer_json(meta: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer.json``: byte-level BPE without prefix space, each digit a word of its own, control tokens special."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": token, **plain, "special": kind == CONTROL_TOKEN}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL_TOKEN, USER_TOKEN)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [pair.split(" ") for pair in meta["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` with the chat template."""
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
    }


def generation_config(meta: dict[str, Any]) -> dict[str, Any]:
    """``generation_config.json``: stop at the end of a chat turn, and at the end of a document in raw completion."""
    ends = [meta["tokenizer.ggml.eos_token_id"], meta["tokenizer.ggml.unknown_token_id"]]
    return {"bos_token_id": meta["tokenizer.ggml.bos_token_id"], "eos_token_id": ends}


def convert(source: Path, target: Path) -> None:
    """Write the model folder ``target`` from the GGUF file ``source``."""
    reader = GGUFReader(source)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    found = (meta["general.architecture"], meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    if found != ("llama", "gpt2", PRE_TOKENIZER):
        sys.exit(f"convert_gguf: {source.name} is {found}, and only ('llama', 'gpt2', '{PRE_TOKENIZER}') is known")
    target.mkdir(parents=True, exist_ok=True)
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    untied = convert_weights(reader, heads, kv_heads, target)
    files = {
        "config.json": model_config(meta, untied=untied),
        "generation_config.json": generation_config(meta),
        "tokenizer.json": tokenizer_json(meta),
        "tokenizer_config.json": tokenizer_config(meta),
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
