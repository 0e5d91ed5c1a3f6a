#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All tests, in stages from cheap to costly; the first failing stage ends the run. Ends with one verdict line.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTEST=(.venv/bin/python -m pytest -q -p no:cacheprovider)
unset PYTHONDONTWRITEBYTECODE  # every agent and command of thousands would compile plait anew
started=$SECONDS
total=0

stage() {
  local name=$1; shift
  local begin=$SECONDS log
  log=$(mktemp)
  printf '\n\033[1m==> %s\033[0m\n' "$name"
  "$@" 2>&1 | tee "$log"
  local status=${PIPESTATUS[0]}
  local passed
  passed=$(grep -oE '[0-9]+ passed' "$log" | tail -1 | cut -d' ' -f1)
  rm -f "$log"
  total=$((total + ${passed:-0}))
  if [ "$status" -ne 0 ]; then
    printf '\n\033[31mFAILED\033[0m in stage "%s" after %d s (%d tests had passed)\n' "$name" "$((SECONDS - started))" "$total"
    exit 1
  fi
  printf -- '--- %s: ok, %d s\n' "$name" "$((SECONDS - begin))"
}

stage "1/5 import contracts"        .venv/bin/lint-imports --no-cache
stage "2/5 pure tests"              "${PYTEST[@]}" tests/unit tests/property tests/golden tests/house
stage "3/5 contracts and kernel"    "${PYTEST[@]}" tests/contract tests/kernel
stage "4/5 images (cached)"         .venv/bin/plait lab images
# Two processes side by side, each in the order of its files: labs are shared within a file, and a failure must be the same the next time.
stage "5/5 engines and whole hosts" .venv/bin/python scripts/abreast.py

printf '\n\033[32mPASSED\033[0m: every stage, in %d s\n%d passed, 0 failed\n' "$((SECONDS - started))" "$total"
