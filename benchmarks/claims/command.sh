#!/usr/bin/env bash
# The peers on small targets. Goes on where it stopped; names of suites: only these (default: digits).
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DUALSTUDENT_DATA:?set it to the folder of data sets}"
suites=("${@:-digits}")
for suite in "${suites[@]}"; do
  .venv/bin/dualstudent sweep "benchmarks/claims/$suite.toml"
done
PYTHONPATH=benchmarks .venv/bin/python benchmarks/claims/collect.py "${suites[@]}"
