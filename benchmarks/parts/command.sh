#!/usr/bin/env bash
# What each of the engine's ways pays by itself, and students side by side. Nothing else should run.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=PASSIVE
PYTHONPATH=benchmarks .venv/bin/python benchmarks/parts/times.py "$@"
