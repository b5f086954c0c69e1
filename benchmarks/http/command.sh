#!/usr/bin/env bash
# Images a second over loopback, and what a run costs beside waiting and training. Ten minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks:benchmarks/http ${PYTHON:-.venv/bin/python} benchmarks/http/measure.py "$@"
