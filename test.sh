#!/usr/bin/env bash
# The checks and the tests: `bash test.sh [pytest arguments]`; `-m slow` for the slow ones. Two workers, each test file
# on one of them, so that what its tests share is made once; `-n 0` runs all in one process, as --pdb wants it.
set -euo pipefail
cd "$(dirname "$0")"
bash run.sh setup
export PATH="$PWD/.venv/bin:$PATH"
ruff check --quiet .
mypy --no-error-summary
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
