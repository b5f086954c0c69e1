#!/usr/bin/env bash
# Milliseconds an iteration of the paper's recipe on one GPU, captured, compiled and plain. Options as speed.py has them.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks:src ${PYTHON:-.venv/bin/python} benchmarks/paper/speed.py "$@"
