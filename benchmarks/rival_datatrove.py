"""datatrove's inference runner over recorded requests; `benchmarks.rivals` runs it in a separate environment.

``python rival_datatrove.py BASE_URL BODIES.jsonl IN_FLIGHT`` prints one line of JSON. It imports nothing of fastgen.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any


def peak_mb() -> float:
    """Largest resident memory of this process; getrusage would begin with that of the process it came from."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def main() -> None:
    """Send every body once and write the answers, as its users would."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("in_flight", type=int)
    given = parser.parse_args()
    began_s = time.perf_counter()
    from datatrove.data import Document
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter
    from loguru import logger

    logger.remove()
    first_s: list[float] = []

    async def ask(document: Any, generate: Any, **_: Any) -> str:  # noqa: ANN401 - its own types, not ours
        if not first_s:
            first_s.append(time.perf_counter())
        result = await generate(document.metadata)
        return str(result.text)

    config = InferenceConfig(
        server_type="endpoint",
        model_name_or_path="test-model-base",
        use_chat=False,
        endpoint_url=given.base_url.removesuffix("/v1"),
        max_concurrent_generations=given.in_flight,
    )
    with tempfile.TemporaryDirectory() as folder:
        runner = InferenceRunner(ask, config, JsonlWriter(folder, compression=None))
        lines = given.bodies.read_text(encoding="utf-8").splitlines()
        runner.run((Document(text="-", id=str(i), metadata=json.loads(line)) for i, line in enumerate(lines)), 0, 1)
        written = sum(len(path.read_bytes().splitlines()) for path in Path(folder).rglob("*.jsonl"))
    ended_s = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "completions": written,
        "wall_s": ended_s - first_s[0],
        "cpu_s": used.ru_utime + used.ru_stime,
        "start_s": first_s[0] - began_s,
        "peak_mb": peak_mb(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
