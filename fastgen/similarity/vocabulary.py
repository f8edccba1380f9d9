"""Tokens as dense ids, and the occurrence-tagged *elements* that both sublinear indexes are built on.

A *symbol* is a token or an element. The first occurrence of a token in a text is the element ``token`` (the same symbol
as the token itself), the k-th is ``token NUL k`` (no token contains NUL). The multiset overlap of two texts is then the
size of a plain set intersection, which is what the Jaccard bound ``t / (2 - t)`` needs. For each symbol, ``base`` holds
the hash that ``datasketch.MinHash`` makes of those bytes: the first 32 bits of their SHA-1 (a fingerprint, not a
security measure), mixed.

Guarantees: equal bytes have equal ids, whatever their hash. Ids are dense and given in order of first appearance. The
youngest symbols can be taken back (:func:`forget_symbols`). Storage is flat arrays, without a Python object per symbol.
``sha1_hash32(bytes) == datasketch.hashfunc.sha1_hash32(bytes)``.

Source of SHA-1: FIPS 180-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.similarity.jit import kernel, signed
from fastgen.similarity.layout import Symbols, reserve_array, with_room

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import StoredArrays


WORK_WORDS = 85
_MAJORITY = 2  # the quarter of the rounds that mixes by majority


@kernel
def _rotl(value: int, by: int) -> int:
    value &= 0xFFFFFFFF
    return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF


@kernel
def _compress(work: NDArray[np.int64]) -> None:
    """One block: ``work`` holds 80 words of the message schedule (16 given), then the five of the state."""
    for i in range(16, 80):
        work[i] = _rotl(work[i - 3] ^ work[i - 8] ^ work[i - 14] ^ work[i - 16], 1)
    a, b, c, d, e = work[80], work[81], work[82], work[83], work[84]
    for i in range(80):
        quarter = i // 20
        if quarter == 0:
            f, k = (b & c) | ((b ^ 0xFFFFFFFF) & d), 0x5A827999
        elif quarter == 1:
            f, k = b ^ c ^ d, 0x6ED9EBA1
        elif quarter == _MAJORITY:
            f, k = (b & c) | (b & d) | (c & d), 0x8F1BBCDC
        else:
            f, k = b ^ c ^ d, 0xCA62C1D6
        mixed = (_rotl(a, 5) + f + e + k + work[i]) & 0xFFFFFFFF
        e, d, c, b, a = d, c, _rotl(b, 30), a, mixed
    work[80] = (work[80] + a) & 0xFFFFFFFF
    work[81] = (work[81] + b) & 0xFFFFFFFF
    work[82] = (work[82] + c) & 0xFFFFFFFF
    work[83] = (work[83] + d) & 0xFFFFFFFF
    work[84] = (work[84] + e) & 0xFFFFFFFF


@kernel
def _padded_byte(data: NDArray[np.uint8], begin: int, end: int, at: int) -> int:
    if begin + at < end:
        return signed(data[begin + at])
    return 0x80 if begin + at == end else 0


@kernel
def sha1_hash32(data: NDArray[np.uint8], begin: int, end: int, work: NDArray[np.int64]) -> int:
    """First four bytes of the SHA-1 digest of ``data[begin:end]``, little-endian, as an int in 0 .. 2**32 - 1.

    ``work`` is scratch of :data:`WORK_WORDS`.
    """
    size = end - begin
    work[80], work[81], work[82] = 0x67452301, 0xEFCDAB89, 0x98BADCFE
    work[83], work[84] = 0x10325476, 0xC3D2E1F0
    blocks = (size + 8) // 64 + 1
    for block in range(blocks):
        for i in range(16):
            word = 0
            for byte in range(4):
                word = (word << 8) | _padded_byte(data, begin, end, block * 64 + i * 4 + byte)
            work[i] = word
        if block == blocks - 1:
            work[14] = (size * 8) >> 32
            work[15] = (size * 8) & 0xFFFFFFFF
        _compress(work)
    first = signed(work[80])
    return ((first & 0xFF) << 24) | ((first & 0xFF00) << 8) | ((first >> 8) & 0xFF00) | (first >> 24)


_U64 = np.uint64
_FNV_OFFSET = _U64(0xCBF29CE484222325)
_FNV_PRIME = _U64(0x100000001B3)
_MIX_1 = _U64(0xFF51AFD7ED558CCD)
_MIX_2 = _U64(0xC4CEB9FE1A85EC53)
_S33 = _U64(33)
_MOST_SYMBOLS = 1 << 31  # address space only
_BYTES_A_SYMBOL = 16
_SMALLEST_TABLE = 1 << 12
_MOST_BYTES = _MOST_SYMBOLS * _BYTES_A_SYMBOL
_COLUMNS = ("hashes", "parent", "occurrence", "base")  # one row a symbol
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
    """Write the symbols of the tokens in ``text[begin:end]`` to ``out`` and return how many.

    A token is a run of ASCII letters and digits (lower-cased in place) and of bytes from 0x80 up. For an ASCII text
    that is rouge_score's tokenizer. Other texts come here as their tokens, joined by spaces, in UTF-8.
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
    """Owner of the arrays. Grows them ahead of a batch so that kernels never have to."""

    def __init__(self) -> None:
        self.symbols = Symbols(
            table=np.full(_SMALLEST_TABLE, -1, np.int32),
            hashes=reserve_array(np.uint64, _MOST_SYMBOLS),
            start=reserve_array(np.int64, _MOST_SYMBOLS),
            blob=reserve_array(np.uint8, _MOST_BYTES),
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
        have, symbols = len(self), self.symbols
        need, used = have + tokens, int(symbols.start[have])
        size = used + 2 * text_bytes + _TAG_BYTES
        columns = {name: getattr(symbols, name) for name in (*_COLUMNS, "start", "slot")}
        if min(map(len, columns.values())) <= need or len(symbols.blob) < size:
            columns = {name: with_room(array, need + 1, have + 1, _MOST_SYMBOLS) for name, array in columns.items()}
            self.symbols = symbols._replace(blob=with_room(symbols.blob, size, used, _MOST_BYTES), **columns)
        if need * 2 > self.symbols.table.size:
            self._make_table(need)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Views of everything that :meth:`load` needs."""
        symbols, count = self.symbols, len(self)
        columns = {name: getattr(symbols, name)[:count] for name in _COLUMNS}
        return {**columns, "start": symbols.start[: count + 1], "blob": symbols.blob[: int(symbols.start[count])]}

    def load(self, stored: StoredArrays) -> None:
        """Read what :meth:`arrays` gave. :meth:`check_loaded` makes it usable."""
        symbols = self.symbols
        columns = {name: stored.load(name, getattr(symbols, name), _MOST_SYMBOLS) for name in (*_COLUMNS, "start")}
        self.symbols = symbols._replace(blob=stored.load("blob", symbols.blob, _MOST_BYTES), **columns)
        symbols.size[0] = stored.rows["hashes"]

    def check_loaded(self, longest: int) -> None:
        """Make the vocabulary usable, with room to read a text of ``longest`` tokens again.

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

    def memory_bytes(self) -> int:
        """Bytes in use."""
        symbols, count = self.symbols, len(self)
        per_symbol = (symbols.hashes, symbols.start, symbols.parent, symbols.occurrence, symbols.base, symbols.slot)
        held = symbols.table.nbytes + int(symbols.start[count])
        return held + count * sum(array.itemsize for array in per_symbol)
