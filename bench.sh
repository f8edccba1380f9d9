#!/usr/bin/env bash
# The main benchmarks in order. benchmarks/README.md explains them and has the last figures.
# Each ends with one line of JSON. They take about ten minutes; FULL=1 uses the sizes of the README and takes hours.
# BASE_URL=... measures your own server in the last two parts instead of starting one.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || { echo "bench.sh: no $python; run: python -m venv .venv && .venv/bin/pip install -e '.[bench]'" >&2; exit 2; }
full=${FULL:-}

# benchmark NAME [FLAGS OF A QUICK RUN...]: FULL uses the defaults of the benchmark.
benchmark() { local name=$1; shift; if [ -n "$full" ]; then "$python" -m "benchmarks.$name"; else "$python" -m "benchmarks.$name" "$@"; fi; }

echo "== 1. Decisions of the similarity filter a second as its pool grows, compared with other libraries"
benchmark filter --sizes 10000

echo "== 2. What the client adds to one request, compared with bare aiohttp"
benchmark client --completions 5000 --repeats 3

echo "== 3. What the whole of generate adds: prompts, parsing, rules, similarity, commits"
benchmark pipeline --instructions 1500 --repeats 3

echo "== 4. The whole of generate, compared with bare requests of the fastest rival (RIVAL_PYTHON: an interpreter with datatrove)"
rivals=(${RIVAL_PYTHON:+--python "$RIVAL_PYTHON"})
if [ -n "$full" ]; then "$python" -m benchmarks.rivals ${rivals[@]+"${rivals[@]}"}
else "$python" -m benchmarks.rivals --instructions 1500 --repeats 1 ${rivals[@]+"${rivals[@]}"}; fi

echo "== 5. Does the memory of the client grow with the completions?"
benchmark memory --completions 50000

echo "== 6. Is a server ever idle? Simulated 8B models on H100s: one and eight, slowed, restarted, resized"
if [ -n "$full" ]; then "$python" -m benchmarks.saturation --scenarios all; else "$python" -m benchmarks.saturation --seconds 25; fi

echo "== 7. What the death of one of three servers costs, and whether a completion is lost or doubled"
benchmark failover --kills 2 --stops 1

echo "== 8. A real vLLM server, same prompts and lengths: fastgen, vllm bench serve, and the loop of the original"
real=(${BASE_URL:+--base-url "$BASE_URL"} ${TOKENIZER:+--tokenizer "$TOKENIZER"} ${BENCH_PYTHON:+--bench-python "$BENCH_PYTHON"})
if [ -n "$full" ]; then "$python" -m benchmarks.real_server --original 20 ${real[@]+"${real[@]}"}
elif [ -n "${BASE_URL:-}" ] || "$python" -m fastgen embedded status | grep -q ': set up'; then
  "$python" -m benchmarks.real_server --pairs 3 --bench-concurrency 64 ${real[@]+"${real[@]}"}
else echo "skipped: the embedded server is not set up (3.5 GB); FULL=1 sets it up, BASE_URL names another"; fi

echo "== 9. Which concurrency is best: the sweep, and the flags that it recommends"
sweep=(--concurrency 64,256,512 --auto --plot runs/sweep.png ${BASE_URL:+--base-url "$BASE_URL"})
if [ -n "$full" ]; then "$python" -m benchmarks.sweep "${sweep[@]}" --seconds 45 --repeats 3
else "$python" -m benchmarks.sweep "${sweep[@]}" --seconds 15 --repeats 1; fi
