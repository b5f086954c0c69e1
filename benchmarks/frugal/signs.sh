#!/usr/bin/env bash
# What frugal's optimiser, loss and climbing are worth on a made-up task of forty classes in colour: signs.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DUALSTUDENT_DATA:?set it to the folder of data sets}"
out=runs/frugal-signs
[ -f "$out/data/test.npz" ] || .venv/bin/python benchmarks/frugal/signs.py "$out/data"
[ -f "$out/target/target.json" ] ||
  .venv/bin/dualstudent target train "$out/data" --arch lenet5 --out "$out/target"
PYTHONPATH=benchmarks .venv/bin/python benchmarks/frugal/variants.py --target "$out/target" --data "$out/data" \
  --queries 10k --labels soft hard --seeds 0 --out "$out/runs" --results benchmarks/frugal/signs.json \
  --command benchmarks/frugal/signs.sh \
  --only "as it is" "distilled at temperature 1" "distilled at temperature 4" "distilled at temperature 12" "nothing climbs" "AdamW, rate 0.003" "SGD, rate 0.05" \
  "rate 0.006" "rate 0.03" "decay 0.1" "decay 1"
