"""How long one step of a continuously batching engine takes, and what fits into it: figures, and where they come from.

A step in which ``D`` sequences decode one token each, ``P`` prompt tokens are prefilled and the decoding sequences
attend to ``K`` cached tokens together takes ``base + P * prefill + D * decode + K * attention`` seconds. That is the
shape of a roofline: the weights are read once a step whatever its size (``base``), arithmetic grows with the tokens,
and the cache is read once for every token attended to. Pure; knows nothing of scheduling or of clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from fastgen.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class EngineModel:
    """An engine: vLLM's limits under vLLM's names, and the cost of a step.

    :raises InputError: a limit that vLLM would refuse to start with, or a cost that is no time.
    """

    max_num_seqs: int = 256
    """Sequences that run at the same time."""
    max_num_batched_tokens: int = 8192
    """Tokens of one step, prefilled and decoded; longer prompts are prefilled in chunks."""
    kv_blocks: int = 22_500
    """Blocks of the key-value cache."""
    block_tokens: int = 16
    """Tokens in a block."""
    max_model_len: int = 8192
    """Prompt and output of one sequence, in tokens."""
    prefix_caching: bool = True
    """Whether whole blocks of a prompt that some earlier prompt began with are taken from the cache."""
    base_s: float = 0.010
    prefill_s_per_token: float = 28e-6
    decode_s_per_sequence: float = 42e-6
    attention_s_per_token: float = 0.063e-6
    slowdown: float = 1.0
    """All costs are multiplied by this."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_blocks", "block_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: use at least 1")
        for name in ("prefill_s_per_token", "decode_s_per_sequence", "attention_s_per_token"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} {getattr(self, name)}: use a number of seconds from 0 up")
        for name in ("base_s", "slowdown"):  # a step without duration would let time stand still
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} {getattr(self, name)}: use a number above 0")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InputError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens}: use at least --max-num-seqs"
                f" {self.max_num_seqs}, so that every running sequence gets its token"
            )
        if self.max_model_len > self.kv_blocks * self.block_tokens:
            raise InputError(
                f"--kv-blocks {self.kv_blocks}: one sequence of --max-model-len {self.max_model_len} tokens does not"
                f" fit; use at least {self.blocks(self.max_model_len)}"
            )

    def blocks(self, tokens: int) -> int:
        """Return how many blocks so many tokens of one sequence take."""
        return -(-tokens // self.block_tokens)

    def steps_s(self, steps: int, prefill_tokens: int, decoding: int, context_tokens: int) -> float:
        """Return the seconds that so many steps of one composition take.

        ``context_tokens`` are attended to in the first of them, ``decoding`` more in each further one.
        """
        attended = steps * context_tokens + decoding * (steps * (steps - 1) // 2)
        each_s = self.base_s + prefill_tokens * self.prefill_s_per_token + decoding * self.decode_s_per_sequence
        return self.slowdown * (steps * each_s + attended * self.attention_s_per_token)

    def resized(self, *, max_num_seqs: int | None = None, kv_blocks: int | None = None) -> EngineModel:
        """Return the model with other limits; what is not given stays.

        :raises InputError: the new limits do not go together.
        """
        seqs = self.max_num_seqs if max_num_seqs is None else max_num_seqs
        return replace(
            self,
            max_num_seqs=seqs,
            max_num_batched_tokens=max(self.max_num_batched_tokens, seqs),
            kv_blocks=self.kv_blocks if kv_blocks is None else kv_blocks,
        )


ENGINES: Final[Mapping[str, EngineModel]] = MappingProxyType(
    {
        "h100-8b": EngineModel(),
        "h100-0.6b": EngineModel(
            max_num_seqs=512,
            kv_blocks=37_000,
            base_s=0.004,
            prefill_s_per_token=4e-6,
            decode_s_per_sequence=22.5e-6,
            attention_s_per_token=0.05e-6,
        ),
        "cpu-135m": EngineModel(
            max_num_seqs=32,
            max_num_batched_tokens=2048,
            kv_blocks=1456,
            block_tokens=32,
            max_model_len=4096,
            base_s=0.0301,
            prefill_s_per_token=0.9e-3,
            decode_s_per_sequence=3.6e-3,
            attention_s_per_token=1.5e-6,
        ),
    }
)
"""Calibrated engines by name.

``h100-8b``: an 8B model of Qwen3's shape in bf16 on one H100 with 80 GB. Weights of 16.4 GB at 70 % of 3.35 TB/s are
7 ms a step, and 3 ms are the engine's own; 16.4 GFLOP a token at 600 TFLOP/s are 28 us, and a decoding sequence costs
14 us more for sampling and bookkeeping; 147 KB of cache a token at 2.3 TB/s are 63 ns. 53 GB are left for 360,000
cached tokens. With Self-Instruct's prompts and lengths a full batch of 256 writes about 6,400 tokens/s, which is what
is published for Qwen3-8B on one H100 with vLLM 0.15 (6,338 by default, 6,443 tuned).

``h100-0.6b``: Qwen3-0.6B's shape. Weights are read in 0.5 ms, so that the engine's own time rules; the cache of a
token is 115 KB. With the same prompts a full batch of 512 writes about 14,000 tokens/s (published: 13,527 and 14,069).

``cpu-135m``: vLLM's CPU build with SmolLM2-135M on one core and 1 GB of cache: 27, 97, 123 and 132 output tokens/s were
measured at 1, 8, 32 and 64 requests in flight with prompts of 207 tokens and 64 output tokens; the model gives within
5 % of each. How the time divides between prefill and decoding is an assumption.

The published figures do not state their lengths, so that no model can be fitted to more than one number of each: what
is claimed is the order of magnitude of each cost, and the total.
"""
