#!/usr/bin/env bash
# Set up and run. `bash run.sh --help` says how.
set -euo pipefail
cd "$(dirname "$0")"

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    cat <<'HELP'
bash run.sh [snakemake arguments]   run the batch of config/demo.yaml, print the gap table, write results/report.html
    --configfile config/mine.yaml       another batch
    -n                                  only say what would run
    --cores 8                           more jobs at once
    --profile profiles/slurm            on a Slurm cluster
bash run.sh study [arguments]       train and evaluate every run of config/study.yaml, or go on with it; options as above
bash run.sh retrain [seed]          train the demo ladder anew, into checkpoints/retrained (20 to 40 minutes)
bash run.sh train-reader [seed]     train the small model that reads drawn screens anew (an hour), into checkpoints/retrained
bash run.sh lab [jupyter arguments] open JupyterLab on the notebooks
bash run.sh docs                    make pages of docs/ and of the library's docstrings, site/index.html
bash run.sh setup                   only make .venv
HELP
    exit 0
fi

# .venv is made once, and again only when what it is made from changes
setup() {
    local wanted
    wanted=$(cat requirements.txt requirements-dev.txt pyproject.toml | cksum)
    if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then return; fi
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13))' || {
        echo "Python 3.11 to 3.13 is needed; '$python' is $("$python" --version 2>&1). Set PYTHON=python3.12, say." >&2
        exit 2
    }
    echo "installing into .venv (some minutes, once) ..." >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt --editable .
    echo "$wanted" > .venv/installed
}
setup
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_DISABLE_TELEMETRY=1

case "${1:-}" in
setup) exit 0 ;;
lab)
    shift
    # the project's defaults for JupyterLab: no pop-up that asks whether to fetch news (news_url=None leaves it)
    export JUPYTER_CONFIG_PATH="$PWD/config/jupyter${JUPYTER_CONFIG_PATH:+:$JUPYTER_CONFIG_PATH}"
    exec jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks "$@"
    ;;
retrain)
    seed=${2:-0}
    # one thread each and two side by side: models this small gain nothing by a second thread
    printf '%s\n' M-S S-S S-S-multi | xargs -P 2 -I RUN sh -c \
        "exec fvlm train config/ladder.yaml --run RUN --seed $seed --out checkpoints/retrained/seed$seed/RUN"
    echo "trained into checkpoints/retrained/seed$seed; name these folders in a copy of config/demo.yaml to evaluate them"
    exit 0
    ;;
train-reader)
    seed=${2:-0}
    exec fvlm train-reader --seed "$seed" --out "checkpoints/retrained/reader-seed$seed"
    ;;
study)
    shift
    exec python -m fvlm_lib study "$@"
    ;;
docs)
    # the notice is about versions after the pinned ones
    NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
    echo "made site/index.html; searching needs it served: .venv/bin/python -m http.server --directory site"
    exit 0
    ;;
esac

# One process from here on, which a signal reaches: it holds the lock, runs Snakemake, and makes the report.
exec python -m fvlm_lib batch "$@"
