#!/usr/bin/env bash
# Fifty kills over one extraction, tool and server by turns, while 5 % of the requests fail. Writes results.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks:tests exec .venv/bin/python benchmarks/faults/run.py "$@"
