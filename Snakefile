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
import re
import shlex
import sys
from dataclasses import asdict

from fvlm_lib.batch.config import check_files, paper_files, read_batch
from fvlm_lib.batch.notebooks import code_hash
from fvlm_lib.data.files import data_stamp
from fvlm_lib.gap.results import gap_file
from fvlm_lib.yaml_files import read_yaml

if not workflow.configfiles:
    sys.exit("there is no config; add --configfile config/demo.yaml")
# relative, so that a project that was moved or copied is still up to date
CONFIGFILE = os.path.relpath(workflow.configfiles[-1])
try:
    for file in workflow.configfiles:
        read_yaml(os.path.relpath(file))  # Snakemake takes the last of equal keys
    BATCH = read_batch(config, CONFIGFILE)
    if workflow.is_main_process:
        check_files(BATCH, CONFIGFILE)
    DATA = data_stamp(BATCH.gap.get("data", {}), CONFIGFILE)
    PAPER = BATCH.paper_parameters()
    PAPER_FILES = paper_files(PAPER)
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
if workflow.is_main_process:
    for id in BATCH.missing_checkpoints():
        where = f"{CONFIGFILE}: checkpoint {id}: there is no {BATCH.checkpoints[id]}"
        print(f"{where}; unless that is an id of a model hub, its run will fail", file=sys.stderr)
PYTHON = shlex.quote(sys.executable)
GAP_NOTEBOOK = "notebooks/gap_analysis.ipynb"
SCALING_NOTEBOOK = "notebooks/scaling_analysis.ipynb"
CHANGES_NOTEBOOK = "notebooks/changed_patches.ipynb"
BENCHMARK_NOTEBOOK = "notebooks/differential_benchmark.ipynb"
PREDICT_NOTEBOOK = "notebooks/predict_sequence.ipynb"
PAPER_NOTEBOOK = "notebooks/paper_figures.ipynb"
NOTEBOOKS = (
    GAP_NOTEBOOK,
    SCALING_NOTEBOOK,
    CHANGES_NOTEBOOK,
    BENCHMARK_NOTEBOOK,
    PREDICT_NOTEBOOK,
    PAPER_NOTEBOOK,
)
HASHES = {notebook: code_hash(Path(notebook)) for notebook in NOTEBOOKS}
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


if not BATCH.checkpoints:
    AGGREGATED = []
DIFFERENTIAL = [
    *expand("results/changes/{sequence}.{suffix}", sequence=BATCH.sequences, suffix=("parquet", "npz")),
    *expand("plots/changes/{sequence}.png", sequence=BATCH.sequences),
    *expand("results/differential/{sequence}--{tower}.parquet", sequence=BATCH.sequences, tower=BATCH.towers),
    *expand("plots/differential/{sequence}--{tower}.png", sequence=BATCH.sequences, tower=BATCH.towers),
    *expand("results/predict/{sequence}--{vlm}.parquet", sequence=BATCH.sequences, vlm=BATCH.vlms),
    *expand("plots/predict/{sequence}--{vlm}.png", sequence=BATCH.sequences, vlm=BATCH.vlms),
]


wildcard_constraints:
    id=r"[A-Za-z0-9][A-Za-z0-9_.-]*?",
    sequence="|".join(map(re.escape, BATCH.sequences)) or "none",
    tower="|".join(map(re.escape, BATCH.towers)) or "none",
    vlm="|".join(map(re.escape, BATCH.vlms)) or "none",
    scatteritem=r"\d+-of-\d+",


scattergather:
    shards=BATCH.shards,


def shard_files(id):
    """Where the parts of a sharded evaluation are kept; none for one shard."""
    return gather.shards(f"results/gap/shards/{id}.{{scatteritem}}.parquet") if BATCH.shards > 1 else []


def gap_run(wc):
    """What the gap notebook of one checkpoint is given, as JSON."""
    return json.dumps(
        {
            **BATCH.gap_parameters(wc.id),
            "training": BATCH.training[wc.id],
            "shards": shard_files(wc.id),
            "result": gap_file(wc.id),
            "figure": f"plots/gap/{wc.id}.png",
        }
    )


def files(folder):
    """The files of a folder; none of one that is not there, which its own run reports, or of "", a hub id, "random:"."""
    return sorted(str(path) for path in Path(folder).glob("*") if folder and path.is_file())


rule all:
    input:
        GAPS,
        [path for id in BATCH.checkpoints for path in shard_files(id)],
        expand("results/gap/{id}.parquet", id=BATCH.checkpoints),
        expand("plots/gap/{id}.png", id=BATCH.checkpoints),
        AGGREGATED,
        DIFFERENTIAL,
        PAPER_FILES,


if BATCH.shards > 1:

    rule gap_shard:
        input:
            lambda wc: BATCH.weights(wc.id),
        output:
            "results/gap/shards/{id}.{scatteritem}.parquet",
        params:
            run=lambda wc: shlex.join(BATCH.gap_arguments(wc.id)),
            shard=lambda wc: wc.scatteritem.replace("-of-", "/"),
            data=lambda wc: DATA,
            code=lambda wc: HASHES[GAP_NOTEBOOK],
        shell:
            f"exec {PYTHON} -m fvlm_lib gap {{params.run}} --shard {{params.shard}} --output {{output:q}}"


rule gap:
    input:
        weights=lambda wc: BATCH.weights(wc.id),
        shards=lambda wc: shard_files(wc.id),
    output:
        result="results/gap/{id}.json",
        table="results/gap/{id}.parquet",
        figure="plots/gap/{id}.png",
    params:
        run=gap_run,
        data=lambda wc: DATA,
        code=lambda wc: HASHES[GAP_NOTEBOOK],
    shell:
        f"exec {PYTHON} -m fvlm_lib run {GAP_NOTEBOOK} --output papermill_runs/gap_{{wildcards.id}}.ipynb"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"


def changes_run(wc):
    """What the changed-patches notebook of one sequence is given, as JSON."""
    outputs = {"result": f"results/changes/{wc.sequence}.parquet", "figure": f"plots/changes/{wc.sequence}.png"}
    return json.dumps({"sequence": BATCH.sequences[wc.sequence], **BATCH.changes, **outputs})


rule changes:
    input:
        lambda wc: files(BATCH.sequences[wc.sequence]),
    output:
        result="results/changes/{sequence}.parquet",
        maps="results/changes/{sequence}.npz",
        figure="plots/changes/{sequence}.png",
    params:
        run=changes_run,
        code=lambda wc: HASHES[CHANGES_NOTEBOOK],
    shell:
        f"exec {PYTHON} -m fvlm_lib run {CHANGES_NOTEBOOK} --output papermill_runs/changes_{{wildcards.sequence}}.ipynb"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"


def benchmark_run(wc):
    """What the benchmark notebook of one sequence and tower is given, as JSON."""
    name = f"{wc.sequence}--{wc.tower}"
    outputs = {"result": f"results/differential/{name}.parquet", "figure": f"plots/differential/{name}.png"}
    return json.dumps({"sequence": BATCH.sequences[wc.sequence], **BATCH.towers[wc.tower], **outputs})


rule differential:
    input:
        lambda wc: files(BATCH.sequences[wc.sequence]),
        lambda wc: files(BATCH.towers[wc.tower].get("tower", "")),
    output:
        result="results/differential/{sequence}--{tower}.parquet",
        figure="plots/differential/{sequence}--{tower}.png",
    params:
        run=benchmark_run,
        code=lambda wc: HASHES[BENCHMARK_NOTEBOOK],
    threads: lambda wc: BATCH.towers[wc.tower].get("threads", 1)
    shell:
        f"exec {PYTHON} -m fvlm_lib run {BENCHMARK_NOTEBOOK}"
        " --output papermill_runs/differential_{wildcards.sequence}--{wildcards.tower}.ipynb"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"


def predict_run(wc):
    """What the notebook on answers of one sequence and vision-language model is given, as JSON."""
    name = f"{wc.sequence}--{wc.vlm}"
    outputs = {"result": f"results/predict/{name}.parquet", "figure": f"plots/predict/{name}.png"}
    settings = {"settings": asdict(BATCH.settings)}
    return json.dumps({"sequence": BATCH.sequences[wc.sequence], **settings, **BATCH.vlms[wc.vlm], **outputs})


rule predict:
    input:
        lambda wc: files(BATCH.sequences[wc.sequence]),
        lambda wc: files(BATCH.vlms[wc.vlm].get("model", "")),
    output:
        result="results/predict/{sequence}--{vlm}.parquet",
        figure="plots/predict/{sequence}--{vlm}.png",
    params:
        run=predict_run,
        code=lambda wc: HASHES[PREDICT_NOTEBOOK],
    threads: lambda wc: BATCH.vlms[wc.vlm].get("threads", 1)
    shell:
        f"exec {PYTHON} -m fvlm_lib run {PREDICT_NOTEBOOK}"
        " --output papermill_runs/predict_{wildcards.sequence}--{wildcards.vlm}.ipynb"
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
        f"exec {PYTHON} -m fvlm_lib run {SCALING_NOTEBOOK} --output papermill_runs/scaling_analysis.ipynb"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"


rule paper:
    input:
        GAPS,
        AGGREGATED,
        DIFFERENTIAL,
    output:
        PAPER_FILES,
    params:
        run=lambda wc: json.dumps(PAPER),
        code=lambda wc: HASHES[PAPER_NOTEBOOK],
    shell:
        f"exec {PYTHON} -m fvlm_lib run {PAPER_NOTEBOOK} --output papermill_runs/paper_figures.ipynb"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"
