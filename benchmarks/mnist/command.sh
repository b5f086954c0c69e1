#!/usr/bin/env bash
# LeNet-5 on MNIST as the target; 200k queries of Dual Student from probabilities, seed 0.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=runs/benchmarks/mnist
data=${DUALSTUDENT_DATA:?set it to the folder of data sets}
start=$EPOCHREALTIME
.venv/bin/dualstudent target train mnist --arch lenet5 --out $out/target --data-dir "$data" --overwrite
.venv/bin/python -c "print($EPOCHREALTIME - $start)" >$out/seconds
for preset in ${PRESETS:-paper small}; do
  .venv/bin/dualstudent extract dual-student --preset "$preset" --target $out/target --queries 200k \
    --labels soft --seed 0 --out "$out/$preset" --data-dir "$data" --overwrite ${THREADS:+--threads $THREADS}
done
PYTHONPATH=benchmarks .venv/bin/python benchmarks/mnist/collect.py
