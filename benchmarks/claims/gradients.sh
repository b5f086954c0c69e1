#!/usr/bin/env bash
# Eq. 6 along runs of Dual Student on digits (after command.sh digits, which trains the target).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks .venv/bin/python benchmarks/claims/gradients.py
