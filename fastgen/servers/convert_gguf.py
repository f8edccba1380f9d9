"""Convert SmolLM2's GGUF file into a Hugging Face model folder, in the embedded server's environment.

Run as ``python convert_gguf.py MODEL.gguf FOLDER``; imports nothing of fastgen. `gguf` dequantises the weights, which
are stored as bfloat16. The tokenizer is put together here: transformers' own GGUF loader does not know the file's
pre-tokenizer and splits digits outside ASCII in another way. A file of another kind ends the script with a message.

Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md). llama.cpp's converter interleaves the two
halves of every query and key head for its rotary embedding, which is undone here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gguf import (  # type: ignore[import-not-found,import-untyped,unused-ignore]  # in the server's environment only
    GGUFReader,
    dequantize,
)
from safetensors.torch import save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PRE_TOKENIZER = "smollm"
"""llama.cpp's name for: every digit by itself, then GPT-2's byte-level split."""
CONTROL_TOKEN, USER_TOKEN = 3, 4
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "blk": "layers",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The parts of a tensor's name: ``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``."""


def convert(source: Path, target: Path) -> None:
    """Write the model folder ``target`` from the GGUF file ``source``."""
    reader = GGUFReader(source)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    found = (meta["general.architecture"], meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    if found != ("llama", "gpt2", PRE_TOKENIZER):
        sys.exit(f"convert_gguf: {source.name} is {found}, and only ('llama', 'gpt2', '{PRE_TOKENIZER}') is known")
    llama = {key.removeprefix("llama."): value for key, value in meta.items() if key.startswith("llama.")}
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in meta.items()}
    heads = {"attn_q": llama["attention.head_count"], "attn_k": llama["attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        weight, parts = dequantize(tensor.data, tensor.tensor_type), tensor.name.split(".")
        if unknown := [part for part in parts if part not in NAMES and part != "weight" and not part.isdigit()]:
            sys.exit(f"convert_gguf: unknown tensor {tensor.name} ({unknown[0]})")
        if count := heads.get(parts[-2]):
            weight = weight.reshape(count, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        tensors[".".join(("model", *(NAMES.get(part, part) for part in parts)))] = torch.tensor(weight).bfloat16()
    tokens, kinds = ggml["tokens"], ggml["token_type"]
    tokenizer = Tokenizer(
        models.BPE({token: at for at, token in enumerate(tokens)}, [tuple(pair.split(" ")) for pair in ggml["merges"]])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL_TOKEN, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL_TOKEN, USER_TOKEN)
        ]
    )
    bos, eos, unknown_token, pad = (ggml[f"{name}_token_id"] for name in ("bos", "eos", "unknown", "padding"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": round(llama["attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": llama["rope.freq_base"],
        "tie_word_embeddings": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "unk_token": tokens[unknown_token],
        "pad_token": tokens[pad],
        "clean_up_tokenization_spaces": False,
        "model_max_length": llama["context_length"],
        "chat_template": meta["tokenizer.chat_template"],
    }
    # stop at the end of a chat turn, and at the end of a document in raw completion
    generation_config = {"bos_token_id": bos, "eos_token_id": [eos, unknown_token]}
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1), encoding="utf-8")
    (target / "generation_config.json").write_text(json.dumps(generation_config), encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
