"""What a run tells about itself: measured figures, what limits it, a series in the run folder, a Prometheus page.

`Sample` is one look; `read_metrics` gives all that a run folder holds, also while the run goes on; a `MetricsHub` hands
each new one to whoever subscribed in the same process. What each field means is in docs/metrics.md. Knows the method
only by its ledger and its stages' names.
"""

from fastgen.metrics.hub import MetricsHub
from fastgen.metrics.limiting import limit_of
from fastgen.metrics.sample import Limit, Sample, ServerSample, StageSample
from fastgen.metrics.series import last_sample, read_metrics

__all__ = [
    "Limit",
    "MetricsHub",
    "Sample",
    "ServerSample",
    "StageSample",
    "last_sample",
    "limit_of",
    "read_metrics",
]
