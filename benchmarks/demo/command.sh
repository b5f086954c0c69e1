#!/usr/bin/env bash
# The demo with seeds 0, 1, 2 (whole, as `make demo` runs it).
set -euo pipefail
cd "$(dirname "$0")/../.."
for seed in 0 1 2; do
  out=runs/benchmarks/demo/$seed
  start=$EPOCHREALTIME
  .venv/bin/dualstudent demo --out "$out" --seed "$seed" --overwrite
  .venv/bin/python -c "print($EPOCHREALTIME - $start)" >"$out/seconds"
done
PYTHONPATH=benchmarks .venv/bin/python benchmarks/demo/collect.py
