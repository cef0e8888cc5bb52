# The batch: the gap of every checkpoint of a config, then table, fits, figures and findings.
#
#   bash run.sh                                  the demo (config/demo.yaml)
#   bash run.sh --configfile config/mine.yaml    your own checkpoints
#
# Jobs are ids, never paths. All that a result depends on is in `params`, for only params of functions of `wc`
# alone are watched for changes: the notebook's parameters, and a hash of its code and of the library modules
# that it uses. `rule all` lists every intermediate: else a failed re-run, which deletes its outputs, would
# leave an old table looking up to date.
import json
import os
import shlex
import sys

from fvlm_lib.batch import gap_file, read_batch
from fvlm_lib.notebooks import code_hash

if not workflow.configfiles:
    sys.exit("there is no config; add --configfile config/demo.yaml")
# relative, so that a project that was moved or copied is still up to date
CONFIGFILE = os.path.relpath(workflow.configfiles[-1])
try:
    BATCH = read_batch(config, CONFIGFILE)
except ValueError as error:
    sys.exit(str(error))
PYTHON = shlex.quote(sys.executable)
GAP_NOTEBOOK = "notebooks/gap_analysis.ipynb"
SCALING_NOTEBOOK = "notebooks/scaling_analysis.ipynb"
HASHES = {notebook: code_hash(Path(notebook)) for notebook in (GAP_NOTEBOOK, SCALING_NOTEBOOK)}
GAPS = [gap_file(id) for id in BATCH.checkpoints]
AGGREGATED = [
    "results/gap_table.csv",
    "results/gap_table.md",
    "results/training_loss/points.csv",
    "results/inference_loss/points.csv",
    "results/scaling_fits.json",
    "results/findings.md",
    *(f"plots/{name}.{suffix}" for name in ("gap_analysis", "scaling_laws") for suffix in ("png", "pdf")),
]


wildcard_constraints:
    id=r"[A-Za-z0-9][A-Za-z0-9_.-]*?",
    shard=r"\d+",


def gap_run(wc):
    """What the gap notebook of one checkpoint is given, as JSON."""
    return json.dumps(
        {
            **BATCH.gap_parameters(wc.id),
            "training": BATCH.training[wc.id],
            "shards": BATCH.shard_files(wc.id),
            "result": gap_file(wc.id),
            "figure": f"plots/gap/{wc.id}.png",
        }
    )


rule all:
    input:
        GAPS,
        [path for id in BATCH.checkpoints for path in BATCH.shard_files(id)],
        expand("results/gap/{id}.parquet", id=BATCH.checkpoints),
        expand("plots/gap/{id}.png", id=BATCH.checkpoints),
        AGGREGATED,


if BATCH.shards > 1:

    rule gap_shard:
        input:
            lambda wc: BATCH.weights(wc.id),
        output:
            f"results/gap/shards/{{id}}.{{shard}}-of-{BATCH.shards}.parquet",
        params:
            run=lambda wc: shlex.join(BATCH.gap_arguments(wc.id)),
            code=lambda wc: HASHES[GAP_NOTEBOOK],
        shell:
            f"exec {PYTHON} -m fvlm_lib.gap {{params.run}} --shard {{wildcards.shard}}/{BATCH.shards}"
            " --output {output:q}"


rule gap:
    input:
        weights=lambda wc: BATCH.weights(wc.id),
        shards=lambda wc: BATCH.shard_files(wc.id),
    output:
        result="results/gap/{id}.json",
        table="results/gap/{id}.parquet",
        figure="plots/gap/{id}.png",
    params:
        run=gap_run,
        code=lambda wc: HASHES[GAP_NOTEBOOK],
    shell:
        f"exec {PYTHON} -m fvlm_lib.runs {GAP_NOTEBOOK} --output papermill_runs/gap_{{wildcards.id}}.ipynb"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"


rule scaling:
    input:
        GAPS,
        expand("results/gap/{id}.parquet", id=BATCH.checkpoints),
    output:
        AGGREGATED,
    params:
        run=lambda wc: json.dumps({"config": CONFIGFILE, "knowledge": BATCH.knowledge, **BATCH.scaling}),
        batch=lambda wc: json.dumps([BATCH.checkpoints, BATCH.training, BATCH.gap]),
        code=lambda wc: HASHES[SCALING_NOTEBOOK],
    shell:
        f"exec {PYTHON} -m fvlm_lib.runs {SCALING_NOTEBOOK} --output papermill_runs/scaling_analysis.ipynb"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"
