#!/usr/bin/env bash
# What each of the engine's ways pays by itself, and students side by side. Nothing else should run.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=benchmarks .venv/bin/python benchmarks/parts/measure.py "$@"
