"""``generate``: the whole story of a run on one screen.

Open the run folder, take up what is committed, start or attach the servers, keep them saturated until the target is
reached, close. Everything that decides anything is elsewhere: `fastgen.method.plan` (what to ask),
`fastgen.method.admission` (what answers mean), `fastgen.scheduling.scheduler` (how much at once),
`fastgen.storage.store` (what is true).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastgen.config import model_names, refuse_credentials, with_paper_server
from fastgen.errors import InputError
from fastgen.generation.material import load_material
from fastgen.generation.preparation import planned
from fastgen.generation.resume import begin_or_check, models_of_begun, resume
from fastgen.generation.saturation import Saturation
from fastgen.ledger import Ledger
from fastgen.metrics import MetricsHub
from fastgen.options import Options
from fastgen.progress import Reporter
from fastgen.serving import Keys, serve
from fastgen.stopping import Stopper
from fastgen.storage.store import RunFolder, Store


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens: its folder, the cache for servers, and the keys of servers that want one."""

    run_dir: Path
    cache_dir: Path
    keys: Keys = field(default_factory=Keys)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: finished, or stopped by its user."""

    complete: int
    target: int
    interrupted: bool
    ledger: Ledger
    concurrency: int = 0
    elapsed_s: float = 0.0
    ended_by: str | None = None
    """The user's rule that ended it before the target, with its figures."""


async def generate(
    place: Place,
    options: Options,
    reporter: Reporter,
    stopper: Stopper,
    hub: MetricsHub | None = None,
) -> Outcome:
    """Run until the target is reached or the user stops it; ``hub`` gets the figures of the run as they come.

    :raises InputError: bad flags or files, or a resume that would change what the run means.
    :raises StoppedError: the run cannot go on now; the same command goes on later.
    """
    folder = RunFolder(place.run_dir)
    folder.exists()
    store = Store(folder)
    try:
        hub = hub or MetricsHub()
        with _metrics_page(options, hub, reporter):
            return await _carry_out(store, place, options, reporter, stopper, hub)
    finally:
        store.close()


async def _carry_out(
    store: Store, place: Place, options: Options, reporter: Reporter, stopper: Stopper, hub: MetricsHub
) -> Outcome:
    folder, material = store.folder, load_material(store.folder, options)
    models = models_of_begun(folder, options, material)
    if models is None:
        refuse_credentials(options)
    options = with_paper_server(options, None if models is None else folder.header().options)
    async with planned(options, material, reporter.say) as made:
        saved = None
        if models is not None:
            plan = await made
            saved = await resume(store, plan, options, reporter.say)
            if plan.done:
                return Outcome(plan.state.complete, plan.state.target, interrupted=False, ledger=store.ledger)
        known = models or model_names(options, {})
        async with serve(options, folder, place.cache_dir, place.keys, known, reporter.say) as serving:
            plan = await made
            if models is None and options.method.preset == "paper" and serving.is_others_vllm:
                reporter.say(
                    "--preset paper: this vLLM server adds its model's own generation_config (top_k, "
                    "repetition_penalty) unless it was started with --generation-config vllm"
                )
            begin_or_check(store, plan, options, material, serving.models)
            began_s = time.monotonic()
            saturation = Saturation(plan, store, serving, options, reporter, hub)
            await saturation.run(stopper, saved)
            return Outcome(
                plan.state.complete,
                plan.state.target,
                interrupted=stopper.stopped and not plan.done,
                ledger=store.ledger,
                concurrency=saturation.concurrency,
                elapsed_s=time.monotonic() - began_s,
                ended_by=None if plan.done else saturation.ended_by,
            )


@contextmanager
def _metrics_page(options: Options, hub: MetricsHub, reporter: Reporter) -> Iterator[None]:
    """The figures of ``hub`` at ``--metrics-port``, if there is one."""
    host, port = options.job.metrics_host, options.job.metrics_port
    if port is None:
        yield
        return
    from fastgen.metrics.exposition import metrics_page

    with metrics_page(hub, host, port) as opened:
        reporter.say(f"metrics for Prometheus at http://{host}:{opened}/metrics")
        yield


def require_target(options: Options) -> None:
    """:raises InputError: a new run without anything to do."""
    if options.job.num_instructions < 1:
        raise InputError("--num-instructions: ask for at least 1")
