#!/usr/bin/env bash
# What docs/results.md says, part by part; goes on where it stopped.
#   command.sh                            everything that two cores can do (some hours)
#   command.sh digits ablations …         only these sweeps: digits, ablations, mnist, fashion
#   command.sh gradients transfer         what is measured on the runs of digits
#   command.sh paper                      the paper's own scale: one GPU, call it until it says "done"
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DUALSTUDENT_DATA:?set it to the folder of data sets}"
export PYTHONPATH=benchmarks
parts=("$@")
((${#parts[@]})) || parts=(digits gradients transfer ablations mnist fashion)
for part in "${parts[@]}"; do
  case $part in
    digits | ablations | mnist | fashion)
      .venv/bin/dualstudent sweep "benchmarks/claims/$part.toml"
      .venv/bin/python benchmarks/claims/collect.py "$part"
      ;;
    gradients | transfer)
      .venv/bin/python "benchmarks/claims/$part.py"
      .venv/bin/python benchmarks/claims/collect.py
      ;;
    paper)
      benchmarks/paper/command.sh --only all --seeds 0 1 2
      .venv/bin/python benchmarks/claims/collect.py
      ;;
    *)
      echo "command.sh: no part '$part': digits, ablations, mnist, fashion, gradients, transfer, paper" >&2
      exit 2
      ;;
  esac
done
