"""Candidate indexes of the similarity filter: ``exhaustive``, ``lsh`` and ``exact``, behind one protocol.

Importing this package compiles and imports nothing heavy; each index lives in a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class CandidateIndex(Protocol):
    """A pool of texts and a way to find those that may be too similar to a new one.

    Promises every implementation keeps:

    - *Order.* Texts are decided in the order given, each against the pool plus the texts found novel before it in the
      same call. Cutting a sequence of texts into calls in another way changes nothing.
    - *No wrong rejection.* A text is rejected only with a pool member at hand whose ROUGE-L F1, as rouge_score computes
      it, breaks the rule. ``exhaustive`` and ``exact`` also never keep a text that has such a member; ``lsh`` does with
      a stated probability.
    - *Seeds.* The nearest seed of a kept text is exact in all three.
    - *Last in, first out.* :meth:`decide` leaves the novel texts at the end of the pool; :meth:`truncate` takes the
      youngest entries back.
    - *One owner.* Calls come from one thread at a time; kernels release the GIL.
    """

    def __len__(self) -> int:
        """Entries in the pool."""

    def add(self, texts: Sequence[bytes], *, seeds: bool = False) -> None:
        """Append texts without a check; as ``seeds`` only while the pool holds nothing but seeds."""

    def decide(self, texts: Sequence[bytes]) -> Any:  # noqa: ANN401 - fastgen.index.layout.Found; importing it needs numpy
        """Decide texts in order and append the novel ones."""

    def look_up(self, texts: Sequence[bytes]) -> Any:  # noqa: ANN401 - as above
        """Decide each text by itself against the pool as it is; nothing is appended."""

    def nearest_older(self, entries: Sequence[int], top: int) -> Any:  # noqa: ANN401 - as above
        """Find the ``top`` most similar older entries of each entry, by a full scan; cost grows with the pool."""

    def truncate(self, entries: int) -> None:
        """Take back the youngest entries until ``entries`` are left; only what the last :meth:`decide` appended."""

    def check_loaded(self) -> None:
        """Make the index usable after its arrays were read from a file.

        :raises ValueError: they contradict each other; the index is then good for nothing.
        """

    def memory_bytes(self) -> int:
        """Bytes held by the pool and the index, room to grow included."""
