#!/usr/bin/env bash
# The demo with seeds 0, 1, 2 (whole, as `make demo` runs it) and the paper's recipe beside it, on the same targets.
set -euo pipefail
cd "$(dirname "$0")/../.."
for seed in 0 1 2; do
  out=runs/benchmarks/demo/$seed
  start=$EPOCHREALTIME
  .venv/bin/dualstudent demo --out "$out" --seed "$seed" --overwrite
  .venv/bin/python -c "print($EPOCHREALTIME - $start)" >"$out/seconds"
  for labels in soft hard; do
    .venv/bin/dualstudent extract dual-student --preset paper --target "$out/target" --queries 50k \
      --labels $labels --seed "$seed" --out "$out/paper-$labels" --overwrite
  done
done
PYTHONPATH=benchmarks .venv/bin/python benchmarks/demo/collect.py
