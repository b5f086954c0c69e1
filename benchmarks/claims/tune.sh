#!/usr/bin/env bash
# Eight trials a method on digits, the same for all; writes tuning.json. Names of methods: only these.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks .venv/bin/python benchmarks/claims/tune.py "$@"
