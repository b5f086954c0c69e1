#!/usr/bin/env bash
# Frugal on GTSRB, whose ResNet-8 learns by two processes on two cores; nothing else should run.
# command.sh begins with it; the sweep then finds these cells done. A run that was stopped begins anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DUALSTUDENT_DATA:?set it to the folder of data sets}"
export OMP_NUM_THREADS=1
target=runs/frugal/targets/gtsrb
[ -f "$target/target.json" ] || .venv/bin/dualstudent target train gtsrb --arch resnet8 --out "$target"
for seed in 0 1 2; do
  run="runs/frugal/runs/gtsrb/frugal/soft/200000/seed$seed"
  grep -qs '"complete": true' "$run/result.json" ||
    .venv/bin/torchrun --nproc-per-node 2 -m dualstudent extract frugal --target "$target" --queries 200k \
      --precision bf16 --threads 1 --points 8 --snapshot-every 300 --seed "$seed" --out "$run" --overwrite
done
