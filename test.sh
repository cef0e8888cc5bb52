#!/usr/bin/env bash
# The checks and the tests: `bash test.sh [pytest arguments]`; `-m slow` for the slow ones.
set -euo pipefail
cd "$(dirname "$0")"
bash run.sh setup
export PATH="$PWD/.venv/bin:$PATH"
ruff check --quiet .
mypy --no-error-summary
exec python -m pytest "$@"
