#!/usr/bin/env bash
# The demo with seeds 0, 1, 2 (whole, as `make demo` runs it) and the paper's recipe beside it.
set -euo pipefail
cd "$(dirname "$0")/../.."
for seed in 0 1 2; do
  start=$(date +%s.%N)
  .venv/bin/dualstudent demo --out "runs/benchmarks/demo/$seed" --seed "$seed" --overwrite
  echo "$(date +%s.%N) - $start" | bc >"runs/benchmarks/demo/$seed/seconds"
done
PYTHONPATH=benchmarks .venv/bin/python benchmarks/demo/collect.py
