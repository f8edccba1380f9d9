"""The newest figures of a run, for whoever is in the same process: a live display, a dashboard.

`latest` and `reading` may be read from any thread; callbacks run in the run's event loop and must be quick. A callback
that raises is dropped with a warning, since nothing that looks at a run may end it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastgen.metrics.rates import Rates
from fastgen.metrics.sample import Sample

if TYPE_CHECKING:
    from fastgen.metrics.readings import Reading

log = logging.getLogger(__name__)


class MetricsHub:
    """Holds the newest `Sample` and hands each new one to the subscribers, in the order in which they came.

    ``reading`` are the counters as they stand and ``rates`` the rates that people see, both renewed once a second.
    ``latest`` and ``reading`` are ``None`` until a run has servers.
    """

    def __init__(self) -> None:
        self.latest: Sample | None = None
        self.reading: Reading | None = None
        self.rates = Rates()
        self._callbacks: list[Callable[[Sample], None]] = []

    def subscribe(self, callback: Callable[[Sample], None]) -> Callable[[], None]:
        """Call ``callback`` with every new sample; the returned function ends that and may be called twice."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def publish(self, sample: Sample) -> None:
        """Make ``sample`` the newest."""
        self.latest = sample
        for callback in tuple(self._callbacks):
            try:
                callback(sample)
            except Exception:  # whatever a display does wrong
                log.warning("a reader of the metrics failed and is left out from now on", exc_info=True)
                self._callbacks.remove(callback)
