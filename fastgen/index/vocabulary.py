"""Tokens to dense ids, and the occurrence-tagged *elements* that both sublinear indexes are built on.

A *symbol* is a token or an element. The first occurrence of a token in a text is the element ``token`` (the same symbol
as the token itself), the k-th is ``token NUL k`` (no token contains NUL). The multiset overlap of two texts is then the
size of a plain set intersection, which is what the Jaccard bound ``t / (2 - t)`` needs. ``base`` holds for each symbol
the hash that ``datasketch.MinHash`` makes of those bytes.

Guarantees: equal bytes have equal ids, whatever their hash; ids are dense and given in order of first appearance; the
youngest symbols can be taken back (:func:`forget_symbols`). Storage is flat arrays, no Python object per symbol. Knows
nothing of pools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastgen.index.arrays import reserve_array, with_room
from fastgen.index.jit import kernel, signed
from fastgen.index.layout import Symbols
from fastgen.index.sha1 import WORK_WORDS, sha1_hash32

if TYPE_CHECKING:
    from numpy.typing import NDArray

_U64 = np.uint64
_FNV_OFFSET = _U64(0xCBF29CE484222325)
_FNV_PRIME = _U64(0x100000001B3)
_MIX_1 = _U64(0xFF51AFD7ED558CCD)
_MIX_2 = _U64(0xC4CEB9FE1A85EC53)
_S33 = _U64(33)
_MOST_SYMBOLS = 1 << 31  # address space only
_BYTES_A_SYMBOL = 16
_SMALLEST_TABLE = 1 << 12
_TAG_BYTES = 32  # NUL and an occurrence number
_TOKEN_BYTE = np.array(
    [code if chr(code).isalnum() or code >= 0x80 else 0 for code in bytes(range(256)).lower()],  # noqa: PLR2004 - ASCII
    np.uint8,
)
"""A byte in lower case, 0 for a separator; bytes from 0x80 up belong to tokens."""


@kernel
def mix64(value: np.uint64) -> np.uint64:
    """MurmurHash3's 64-bit finalizer: a bijection that spreads every bit."""
    value ^= value >> _S33
    value *= _MIX_1
    value ^= value >> _S33
    value *= _MIX_2
    return value ^ (value >> _S33)


@kernel
def _minhash_base(symbols: Symbols, begin: int, end: int) -> np.uint32:
    """Apply datasketch's ``affine32`` pre-mix (MurmurHash3's 32-bit finalizer) to the SHA-1 of ``blob[begin:end]``."""
    h = sha1_hash32(symbols.blob, begin, end, symbols.work)
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    return np.uint32(h ^ (h >> 16))


@kernel
def _append_symbol(symbols: Symbols, at: int, digest: np.uint64, bytes_added: int) -> int:
    symbol = symbols.size[0]
    symbols.table[at] = symbol
    symbols.hashes[symbol] = digest
    symbols.start[symbol + 1] = symbols.start[symbol] + bytes_added
    symbols.slot[symbol] = 0
    symbols.size[0] = symbol + 1
    return int(symbol)


@kernel
def _same_bytes(symbols: Symbols, symbol: int, text: NDArray[np.uint8], begin: int, end: int) -> bool:
    first = symbols.start[symbol]
    if symbols.occurrence[symbol] != 1 or symbols.start[symbol + 1] - first != end - begin:
        return False
    for i in range(end - begin):  # noqa: SIM110 - numba compiles loops, not generators
        if symbols.blob[first + i] != text[begin + i]:
            return False
    return True


@kernel
def token_symbol(symbols: Symbols, text: NDArray[np.uint8], begin: int, end: int, digest: np.uint64) -> int:
    """Id of the token ``text[begin:end]``, new if need be."""
    mask = symbols.table.size - 1
    at = signed(digest & _U64(mask))
    while symbols.table[at] >= 0:
        symbol = symbols.table[at]
        if symbols.hashes[symbol] == digest and _same_bytes(symbols, symbol, text, begin, end):
            return int(symbol)
        at = (at + 1) & mask
    symbol = _append_symbol(symbols, at, digest, end - begin)
    first = symbols.start[symbol]
    for i in range(end - begin):
        symbols.blob[first + i] = text[begin + i]
    symbols.parent[symbol] = symbol
    symbols.occurrence[symbol] = 1
    symbols.base[symbol] = _minhash_base(symbols, first, first + end - begin)
    return int(symbol)


@kernel
def _tagged_base(symbols: Symbols, token: int, k: int) -> np.uint32:
    """MinHash hash of ``token NUL k``, spelled out in the unused end of the blob."""
    first, length = symbols.start[token], symbols.start[token + 1] - symbols.start[token]
    begin = symbols.start[symbols.size[0]]
    for i in range(length):
        symbols.blob[begin + i] = symbols.blob[first + i]
    symbols.blob[begin + length] = 0
    digits, rest = 1, k // 10
    while rest > 0:
        digits, rest = digits + 1, rest // 10
    for i in range(digits):
        symbols.blob[begin + length + digits - i] = 48 + k % 10
        k //= 10
    return _minhash_base(symbols, begin, begin + length + 1 + digits)


@kernel
def element_symbol(symbols: Symbols, token: int, k: int) -> int:
    """Id of the element "``token`` for the ``k``-th time", new if need be."""
    if k == 1:
        return token
    digest = mix64(symbols.hashes[token] + _U64(k) * _MIX_2)
    mask = symbols.table.size - 1
    at = signed(digest & _U64(mask))
    while symbols.table[at] >= 0:
        symbol = symbols.table[at]
        if symbols.parent[symbol] == token and symbols.occurrence[symbol] == k:
            return int(symbol)
        at = (at + 1) & mask
    symbol = _append_symbol(symbols, at, digest, 0)
    symbols.parent[symbol] = token
    symbols.occurrence[symbol] = k
    symbols.base[symbol] = _tagged_base(symbols, token, k)
    return int(symbol)


@kernel
def tokenise_bytes(symbols: Symbols, text: NDArray[np.uint8], begin: int, end: int, out: NDArray[np.int32]) -> int:
    """Symbols of the tokens in ``text[begin:end]``, written to ``out``; returns how many.

    A token is a run of ASCII letters and digits (lower-cased in place) and of bytes from 0x80 up. For an ASCII text
    that is rouge_score's tokenizer; other texts come here as their tokens, joined by spaces, in UTF-8.
    """
    count = 0
    at = begin
    while at < end:
        first = at
        digest = _FNV_OFFSET
        while at < end:
            byte = _TOKEN_BYTE[text[at]]
            if byte == 0:
                break
            text[at] = byte
            digest = (digest ^ _U64(byte)) * _FNV_PRIME
            at += 1
        if at > first:
            out[count] = token_symbol(symbols, text, first, at, mix64(digest))
            count += 1
        at += 1
    return count


@kernel
def elements_of(symbols: Symbols, tokens: NDArray[np.int32], count: int, out: NDArray[np.int32]) -> None:
    """Write the element of each of the first ``count`` tokens to ``out``, in text order."""
    for i in range(count):
        token = tokens[i]
        symbols.slot[token] += 1
        out[i] = element_symbol(symbols, token, symbols.slot[token])
    for i in range(count):
        symbols.slot[tokens[i]] = 0


@kernel
def forget_symbols(symbols: Symbols, keep: int) -> None:
    """Take back every symbol from id ``keep`` up.

    Youngest first: with linear probing the last symbol added never stands in another's probe path, so emptying its
    slot is safe.
    """
    mask = symbols.table.size - 1
    for symbol in range(symbols.size[0] - 1, keep - 1, -1):
        at = signed(symbols.hashes[symbol] & _U64(mask))
        while symbols.table[at] != symbol:
            at = (at + 1) & mask
        symbols.table[at] = -1
    symbols.size[0] = keep


@kernel
def _rehash(symbols: Symbols, table: NDArray[np.int32]) -> None:
    mask = table.size - 1
    for symbol in range(symbols.size[0]):
        at = signed(symbols.hashes[symbol] & _U64(mask))
        while table[at] >= 0:
            at = (at + 1) & mask
        table[at] = symbol


class Vocabulary:
    """Owner of the arrays; grows them ahead of a batch so that kernels never have to."""

    def __init__(self) -> None:
        self.symbols = Symbols(
            table=np.full(_SMALLEST_TABLE, -1, np.int32),
            hashes=reserve_array(np.uint64, _MOST_SYMBOLS),
            start=reserve_array(np.int64, _MOST_SYMBOLS),
            blob=reserve_array(np.uint8, _MOST_SYMBOLS * _BYTES_A_SYMBOL),
            parent=reserve_array(np.int32, _MOST_SYMBOLS),
            occurrence=reserve_array(np.int32, _MOST_SYMBOLS),
            base=reserve_array(np.uint32, _MOST_SYMBOLS),
            slot=reserve_array(np.int32, _MOST_SYMBOLS),
            size=np.zeros(1, np.int64),
            work=np.empty(WORK_WORDS, np.int64),
        )

    def __len__(self) -> int:
        """Count the symbols."""
        return int(self.symbols.size[0])

    def reserve(self, tokens: int, text_bytes: int) -> None:
        """Make room for ``tokens`` more symbols whose bytes add up to at most ``text_bytes``."""
        have = len(self)
        need = have + tokens
        symbols, blob = self.symbols, int(self.symbols.start[have])
        if len(symbols.hashes) <= need or len(symbols.blob) < blob + 2 * text_bytes + _TAG_BYTES:
            self.symbols = self._grown(have, need + 1, blob, blob + 2 * text_bytes + _TAG_BYTES)
        if need * 2 > self.symbols.table.size:
            self._make_table(need)

    def check_loaded(self, longest: int) -> None:
        """Make the vocabulary usable after a load, with room to read a text of ``longest`` tokens again.

        :raises ValueError: its arrays contradict each other.
        """
        count = len(self)
        start = self.symbols.start[: count + 1]
        lengths = np.diff(start)
        if start[0] != 0 or (lengths < 0).any():
            raise ValueError("the vocabulary's arrays contradict each other")
        self.reserve(longest, int(lengths.max(initial=0)))
        self._make_table(count + longest)

    def _make_table(self, need: int) -> None:
        table = np.full(max(_SMALLEST_TABLE, 1 << (need * 3).bit_length()), -1, np.int32)
        _rehash(self.symbols, table)
        self.symbols = self.symbols._replace(table=table)

    def _grown(self, have: int, need: int, blob: int, blob_need: int) -> Symbols:
        columns = {
            name: with_room(getattr(self.symbols, name), need, have + 1, _MOST_SYMBOLS)
            for name in ("hashes", "start", "parent", "occurrence", "base", "slot")
        }
        return self.symbols._replace(
            blob=with_room(self.symbols.blob, blob_need, blob, _MOST_SYMBOLS * _BYTES_A_SYMBOL), **columns
        )

    def memory_bytes(self) -> int:
        """Bytes in use."""
        symbols, count = self.symbols, len(self)
        per_symbol = (symbols.hashes, symbols.start, symbols.parent, symbols.occurrence, symbols.base, symbols.slot)
        held = symbols.table.nbytes + int(symbols.start[count])
        return held + count * sum(array.itemsize for array in per_symbol)
