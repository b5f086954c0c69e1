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
  --queries 10k --labels soft --seeds 0 --out "$out/runs" --results benchmarks/frugal/signs.json \
  --command benchmarks/frugal/signs.sh \
  --only "as it is" "ℓ1 of logits, rate 0.003" "temperature 1" "nothing climbs" "AdamW"
