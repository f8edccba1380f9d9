#!/usr/bin/env bash
# The benchmarks in the order of the story; figures and what they mean are in benchmarks/README.md.
# Each ends in one line of JSON. Quick by default (some ten minutes); FULL=1 for the sizes that the README quotes (hours).
# BASE_URL=... measures a server of yours in the last two parts instead of the ones that are started here.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || { echo "bench.sh: no $python; run: python -m venv .venv && .venv/bin/pip install -e '.[bench]'" >&2; exit 2; }
full=${FULL:-}

# benchmark NAME [FLAGS OF A QUICK RUN...]: with FULL, the benchmark's own defaults.
benchmark() { local name=$1; shift; if [ -n "$full" ]; then "$python" -m "benchmarks.$name"; else "$python" -m "benchmarks.$name" "$@"; fi; }

echo "== 1. What the similarity filter decides a second as its pool grows, beside what a user would type instead"
benchmark filter --sizes 10000

echo "== 2. What a client on aiohttp pays at least, and what ours adds to one request: the client's ceiling"
benchmark client --completions 5000 --repeats 3

echo "== 3. What the whole of generate adds: prompts, parsing, rules, similarity, commits"
benchmark pipeline --instructions 1500 --repeats 3

echo "== 4. The whole of generate beside the bare requests of the fastest rival (RIVAL_PYTHON: one that has datatrove)"
rivals=(${RIVAL_PYTHON:+--python "$RIVAL_PYTHON"})
if [ -n "$full" ]; then "$python" -m benchmarks.rivals ${rivals[@]+"${rivals[@]}"}
else "$python" -m benchmarks.rivals --instructions 1500 --repeats 1 ${rivals[@]+"${rivals[@]}"}; fi

echo "== 5. Whether the client's memory grows with what it has asked"
benchmark memory --completions 50000

echo "== 6. Whether a server is ever idle: simulated 8B models on H100s, one and eight, slowed, restarted, resized"
if [ -n "$full" ]; then "$python" -m benchmarks.saturation --scenarios all; else "$python" -m benchmarks.saturation --seconds 25; fi

echo "== 7. What the death of one of three servers costs, and whether anything is lost or done twice"
benchmark failover --kills 2 --stops 1

echo "== 8. A real vLLM server, the same prompts and lengths: fastgen against vllm bench serve, and the original's loop"
real=(${BASE_URL:+--base-url "$BASE_URL"} ${TOKENIZER:+--tokenizer "$TOKENIZER"} ${BENCH_PYTHON:+--bench-python "$BENCH_PYTHON"})
if [ -n "$full" ]; then "$python" -m benchmarks.real_server --original 20 ${real[@]+"${real[@]}"}
elif [ -n "${BASE_URL:-}" ] || "$python" -m fastgen embedded status | grep -q ': set up'; then
  "$python" -m benchmarks.real_server --pairs 3 --bench-concurrency 64 ${real[@]+"${real[@]}"}
else echo "left out: the embedded server is not set up (3.5 GB); FULL=1 does that, BASE_URL names another"; fi

echo "== 9. Which concurrency is best: the sweep, and the flags that it recommends"
sweep=(--concurrency 64,256,512 --auto --plot runs/sweep.png ${BASE_URL:+--base-url "$BASE_URL"})
if [ -n "$full" ]; then "$python" -m benchmarks.sweep "${sweep[@]}" --seconds 45 --repeats 3
else "$python" -m benchmarks.sweep "${sweep[@]}" --seconds 15 --repeats 1; fi
