#!/usr/bin/env bash
# What choosing is worth to a large student: a ResNet-8 copies a ResNet-8 on the signs of signs.sh: large.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DUALSTUDENT_DATA:?set it to the folder of data sets}"
out=runs/frugal-signs
[ -f "$out/data/test.npz" ] || .venv/bin/python benchmarks/frugal/signs.py "$out/data"
[ -f "$out/target8/target.json" ] ||
  .venv/bin/dualstudent target train "$out/data" --arch resnet8 --out "$out/target8"
one() {
  PYTHONPATH=benchmarks .venv/bin/python benchmarks/frugal/variants.py --target "$out/target8" --data "$out/data" \
    --student resnet8 --precision bf16 --queries 20k --out "$out/large" --command benchmarks/frugal/large.sh "$@"
}
each=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -r "$each"' EXIT
(one --labels soft --seeds 0 1 2 --only "as it is" "it chooses" --results "$each/1") & first=$!
(one --labels soft --seeds 0 1 2 --only "it chooses, and a half climbs" --results "$each/2"
 one --labels hard --seeds 0 --results "$each/3") & second=$!
wait $first
wait $second
one --seeds 0 1 2 --collect --results benchmarks/frugal/large.json
