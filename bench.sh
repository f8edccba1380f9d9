#!/usr/bin/env bash
# The benchmarks in the order of the story; figures and what they mean are in benchmarks/README.md.
# Each ends in one line of JSON; quick by default (a few minutes), FULL=1 for the sizes that the README quotes.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || { echo "bench.sh: no $python; run the README's test command first, or set PYTHON" >&2; exit 2; }
full=${FULL:-}

echo "== What a client on aiohttp pays at least, and what ours adds to one request"
"$python" -m benchmarks.client $([ -n "$full" ] || echo --completions 5000 --repeats 3)

echo "== What the similarity filter decides a second as its pool grows, beside what a user would type instead"
"$python" -m benchmarks.filter $([ -n "$full" ] || echo --sizes 10000)

echo "== What the whole of generate adds: prompts, parsing, rules, similarity, commits"
"$python" -m benchmarks.pipeline $([ -n "$full" ] || echo --instructions 1500 --repeats 3)
