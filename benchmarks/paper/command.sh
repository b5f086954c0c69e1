#!/usr/bin/env bash
# The tables of the paper on one GPU; call it again until it says "done". Options as run.py has them.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks:src ${PYTHON:-.venv/bin/python} benchmarks/paper/run.py "$@"
