#!/usr/bin/env bash
# Frugal beside its peers; goes on where it stopped. Writes results.json and the table of docs/methods/frugal.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DUALSTUDENT_DATA:?set it to the folder of data sets}"
benchmarks/frugal/gtsrb.sh
.venv/bin/dualstudent sweep benchmarks/frugal/frugal.toml
PYTHONPATH=benchmarks:benchmarks/claims .venv/bin/python benchmarks/frugal/table.py
