#!/usr/bin/env bash
# Engine against a plain loop, one thread each, in turns. --quick: under two minutes, into runs/.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks .venv/bin/python benchmarks/engine/compare.py "$@"
