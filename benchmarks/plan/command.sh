#!/usr/bin/env bash
# What `plan` says a run takes, and what it takes: LeNet-5 on MNIST (networks of case b), the demo's (case c), by turns.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=runs/benchmarks/plan
data=${DUALSTUDENT_DATA:?set it to the folder of data sets}
mkdir -p $out
[ -f $out/mnist/target.json ] || .venv/bin/dualstudent target train mnist --arch lenet5 --out $out/mnist --data-dir "$data" --epochs 1
[ -f $out/digits/target.json ] || .venv/bin/dualstudent target train digits --arch digits-cnn --out $out/digits
for seed in 0 1 2; do
  for set in mnist:20k digits:200k; do
    name=${set%:*} queries=${set#*:}
    words=(dual-student --target $out/$name --queries "$queries" --threads 1)
    .venv/bin/dualstudent plan "${words[@]}" | tee $out/$name$seed.plan
    .venv/bin/dualstudent extract "${words[@]}" --seed $seed --out $out/$name-run$seed --data-dir "$data" --overwrite
  done
done
PYTHONPATH=benchmarks .venv/bin/python benchmarks/plan/collect.py
