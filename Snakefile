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

from fvlm_lib.batch.config import check_files, paper_files, read_batch, study_files
from fvlm_lib.batch.folders import NOTEBOOKS, folders, run_name
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
    BATCH_FOLDERS = folders(BATCH.output)
    DATA = data_stamp(BATCH.gap.get("data", {}), CONFIGFILE)
    PAPER = BATCH.paper_parameters()
    PAPER_FILES = paper_files(PAPER)
    STUDY = BATCH.study_parameters()
    STUDY_FILES = study_files(STUDY) if BATCH.study else {"tables": [], "figures": []}
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
if workflow.is_main_process:
    for id in BATCH.missing_checkpoints():
        where = f"{CONFIGFILE}: checkpoint {id}: there is no {BATCH.checkpoints[id]}"
        print(f"{where}; unless that is an id of a model hub, its run will fail", file=sys.stderr)
PYTHON = shlex.quote(sys.executable)
RESULTS, PLOTS = BATCH_FOLDERS.results, BATCH_FOLDERS.plots
HASHES = {rule: code_hash(Path(notebook)) for rule, notebook in NOTEBOOKS.items()}


def notebook_job(rule, **wildcards):
    """The command of a rule's job, which runs its notebook with `params.run` and must write all of `output`."""
    executed = shlex.quote(f"{BATCH_FOLDERS.runs}/{run_name(rule, wildcards)}.ipynb")
    return (
        f"exec {PYTHON} -m fvlm_lib run {NOTEBOOKS[rule]} --output {executed}"
        " --parameters {params.run:q} --code-hash {params.code} --results {output:q}"
    )


GAPS = [gap_file(id, RESULTS) for id in BATCH.checkpoints]
AGGREGATED = [
    f"{RESULTS}/gap_table.csv",
    f"{RESULTS}/gap_table.md",
    f"{RESULTS}/training_loss/points.csv",
    f"{RESULTS}/inference_loss/points.csv",
    f"{RESULTS}/scaling_fits.json",
    f"{RESULTS}/findings.md",
    *(f"{PLOTS}/{name}.{suffix}" for name in ("gap_analysis", "scaling_laws") for suffix in ("png", "pdf")),
]


if not BATCH.checkpoints:
    AGGREGATED = []
DIFFERENTIAL = [
    *expand(f"{RESULTS}/changes/{{sequence}}.{{suffix}}", sequence=BATCH.sequences, suffix=("parquet", "npz")),
    *expand(f"{PLOTS}/changes/{{sequence}}.png", sequence=BATCH.sequences),
    *expand(f"{RESULTS}/differential/{{sequence}}--{{tower}}.parquet", sequence=BATCH.sequences, tower=BATCH.towers),
    *expand(f"{PLOTS}/differential/{{sequence}}--{{tower}}.png", sequence=BATCH.sequences, tower=BATCH.towers),
    *(f"{RESULTS}/predict/{sequence}--{vlm}.parquet" for sequence, vlm in BATCH.asked),
    *(f"{PLOTS}/predict/{sequence}--{vlm}.png" for sequence, vlm in BATCH.asked),
]
PREFILL = [
    *expand(f"{RESULTS}/prefill/{{model}}.parquet", model=BATCH.prefill),
    *expand(f"{PLOTS}/prefill/{{model}}.png", model=BATCH.prefill),
]
ANSWERS = [
    *expand(f"{RESULTS}/answers/{{reader}}.{{suffix}}", reader=BATCH.answers, suffix=("parquet", "csv", "md", "tex")),
    *expand(f"{PLOTS}/answers/{{reader}}.{{suffix}}", reader=BATCH.answers, suffix=("png", "pdf", "json")),
]


wildcard_constraints:
    id=r"[A-Za-z0-9][A-Za-z0-9_.-]*?",
    sequence="|".join(map(re.escape, BATCH.sequences)) or "none",
    tower="|".join(map(re.escape, BATCH.towers)) or "none",
    vlm="|".join(map(re.escape, BATCH.vlms)) or "none",
    model="|".join(map(re.escape, BATCH.prefill)) or "none",
    reader="|".join(map(re.escape, BATCH.answers)) or "none",
    scatteritem=r"\d+-of-\d+",


scattergather:
    shards=BATCH.shards,


def shard_files(id):
    """Where the parts of a sharded evaluation are kept; none for one shard."""
    return gather.shards(f"{RESULTS}/gap/shards/{id}.{{scatteritem}}.parquet") if BATCH.shards > 1 else []


def gap_run(wc):
    """What the gap notebook of one checkpoint is given, as JSON."""
    return json.dumps(
        {
            **BATCH.gap_parameters(wc.id),
            "training": BATCH.training[wc.id],
            "shards": shard_files(wc.id),
            "result": gap_file(wc.id, RESULTS),
            "figure": f"{PLOTS}/gap/{wc.id}.png",
        }
    )


def files(folder):
    """The files of a folder; none of one that is not there, which its own run reports, or of "", a hub id, "random:"."""
    return sorted(str(path) for path in Path(folder).glob("*") if folder and path.is_file())


rule all:
    input:
        GAPS,
        [path for id in BATCH.checkpoints for path in shard_files(id)],
        expand(f"{RESULTS}/gap/{{id}}.parquet", id=BATCH.checkpoints),
        expand(f"{PLOTS}/gap/{{id}}.png", id=BATCH.checkpoints),
        AGGREGATED,
        DIFFERENTIAL,
        PREFILL,
        ANSWERS,
        STUDY_FILES["tables"],
        STUDY_FILES["figures"],
        PAPER_FILES,


if BATCH.shards > 1:

    rule gap_shard:
        input:
            lambda wc: BATCH.weights(wc.id),
        output:
            f"{RESULTS}/gap/shards/{{id}}.{{scatteritem}}.parquet",
        params:
            run=lambda wc: shlex.join(BATCH.gap_arguments(wc.id)),
            shard=lambda wc: wc.scatteritem.replace("-of-", "/"),
            data=lambda wc: DATA,
            code=lambda wc: HASHES["gap"],
        log:
            f"{BATCH_FOLDERS.runs}/shards/{{id}}.{{scatteritem}}.log",
        priority: 10
        shell:
            f"exec {PYTHON} -m fvlm_lib gap {{params.run}} --shard {{params.shard}} --output {{output:q}} 2> {{log:q}}"


rule gap:
    input:
        weights=lambda wc: BATCH.weights(wc.id),
        shards=lambda wc: shard_files(wc.id),
    output:
        result=f"{RESULTS}/gap/{{id}}.json",
        table=f"{RESULTS}/gap/{{id}}.parquet",
        figure=f"{PLOTS}/gap/{{id}}.png",
    params:
        run=gap_run,
        data=lambda wc: DATA,
        code=lambda wc: HASHES["gap"],
    priority: 10  # before all else, so that the gap table is there early
    shell:
        notebook_job("gap", id="{wildcards.id}")


def changes_run(wc):
    """What the changed-patches notebook of one sequence is given, as JSON."""
    outputs = {"result": f"{RESULTS}/changes/{wc.sequence}.parquet", "figure": f"{PLOTS}/changes/{wc.sequence}.png"}
    return json.dumps({"sequence": BATCH.sequences[wc.sequence], **BATCH.changes, **outputs})


rule changes:
    input:
        lambda wc: files(BATCH.sequences[wc.sequence]),
    output:
        result=f"{RESULTS}/changes/{{sequence}}.parquet",
        maps=f"{RESULTS}/changes/{{sequence}}.npz",
        figure=f"{PLOTS}/changes/{{sequence}}.png",
    params:
        run=changes_run,
        code=lambda wc: HASHES["changes"],
    shell:
        notebook_job("changes", sequence="{wildcards.sequence}")


def benchmark_run(wc):
    """What the benchmark notebook of one sequence and tower is given, as JSON."""
    name = f"{wc.sequence}--{wc.tower}"
    outputs = {"result": f"{RESULTS}/differential/{name}.parquet", "figure": f"{PLOTS}/differential/{name}.png"}
    return json.dumps({"sequence": BATCH.sequences[wc.sequence], **BATCH.towers[wc.tower], **outputs})


rule differential:
    input:
        lambda wc: files(BATCH.sequences[wc.sequence]),
        lambda wc: files(BATCH.towers[wc.tower].get("tower", "")),
    output:
        result=f"{RESULTS}/differential/{{sequence}}--{{tower}}.parquet",
        figure=f"{PLOTS}/differential/{{sequence}}--{{tower}}.png",
    params:
        run=benchmark_run,
        code=lambda wc: HASHES["differential"],
    threads: lambda wc: BATCH.towers[wc.tower].get("threads", 1)
    shell:
        notebook_job("differential", sequence="{wildcards.sequence}", tower="{wildcards.tower}")


def predict_run(wc):
    """What the notebook on answers of one sequence and vision-language model is given, as JSON."""
    name = f"{wc.sequence}--{wc.vlm}"
    outputs = {"result": f"{RESULTS}/predict/{name}.parquet", "figure": f"{PLOTS}/predict/{name}.png"}
    settings = {"settings": asdict(BATCH.settings)}
    return json.dumps({"sequence": BATCH.sequences[wc.sequence], **settings, **BATCH.vlms[wc.vlm], **outputs})


rule predict:
    input:
        lambda wc: files(BATCH.sequences[wc.sequence]),
        lambda wc: files(BATCH.vlms[wc.vlm].get("model", "")),
    output:
        result=f"{RESULTS}/predict/{{sequence}}--{{vlm}}.parquet",
        figure=f"{PLOTS}/predict/{{sequence}}--{{vlm}}.png",
    params:
        run=predict_run,
        code=lambda wc: HASHES["predict"],
    threads: lambda wc: BATCH.vlms[wc.vlm].get("threads", 1)
    shell:
        notebook_job("predict", sequence="{wildcards.sequence}", vlm="{wildcards.vlm}")


def prefill_run(wc):
    """What the notebook on the prefill of one language model is given, as JSON."""
    outputs = {"result": f"{RESULTS}/prefill/{wc.model}.parquet", "figure": f"{PLOTS}/prefill/{wc.model}.png"}
    return json.dumps({**BATCH.prefill[wc.model], **outputs})


rule prefill:
    input:
        lambda wc: files(BATCH.prefill[wc.model]["model"]),
    output:
        result=f"{RESULTS}/prefill/{{model}}.parquet",
        figure=f"{PLOTS}/prefill/{{model}}.png",
    params:
        run=prefill_run,
        code=lambda wc: HASHES["prefill"],
    threads: lambda wc: BATCH.prefill[wc.model].get("threads", 1)
    shell:
        notebook_job("prefill", model="{wildcards.model}")


def answers_run(wc):
    """What the notebook on right and stale answers of one model is given, as JSON."""
    outputs = {"result": f"{RESULTS}/answers/{wc.reader}.parquet", "figure": f"{PLOTS}/answers/{wc.reader}.png"}
    return json.dumps({**BATCH.answers[wc.reader], **outputs})


rule answers:
    input:
        lambda wc: files(BATCH.answers[wc.reader]["model"]),
        lambda wc: files(BATCH.answers[wc.reader].get("times_model") or ""),
    output:
        result=f"{RESULTS}/answers/{{reader}}.parquet",
        tables=expand(f"{RESULTS}/answers/{{{{reader}}}}.{{suffix}}", suffix=("csv", "md", "tex")),
        figure=f"{PLOTS}/answers/{{reader}}.png",
        paper=expand(f"{PLOTS}/answers/{{{{reader}}}}.{{suffix}}", suffix=("pdf", "json")),
    params:
        run=answers_run,
        code=lambda wc: HASHES["answers"],
    threads: lambda wc: BATCH.answers[wc.reader].get("threads", 1)
    shell:
        notebook_job("answers", reader="{wildcards.reader}")


rule study:
    input:
        files(BATCH.study or ""),
    output:
        tables=STUDY_FILES["tables"],
        figures=STUDY_FILES["figures"],
    params:
        run=lambda wc: json.dumps(STUDY),
        code=lambda wc: HASHES["study"],
    shell:
        notebook_job("study")


rule scaling:
    input:
        GAPS,
        expand(f"{RESULTS}/gap/{{id}}.parquet", id=BATCH.checkpoints),
    output:
        AGGREGATED,
    params:
        run=lambda wc: json.dumps(
            {
                "config": CONFIGFILE, "knowledge": BATCH.knowledge, "results": RESULTS, "figures": PLOTS,
                **BATCH.scaling,
            }
        ),
        batch=lambda wc: json.dumps([BATCH.checkpoints, BATCH.training, BATCH.gap]),
        code=lambda wc: HASHES["scaling"],
    priority: 20
    shell:
        notebook_job("scaling")


rule paper:
    input:
        GAPS,
        AGGREGATED,
        DIFFERENTIAL,
        STUDY_FILES["tables"],
    output:
        PAPER_FILES,
    params:
        run=lambda wc: json.dumps(PAPER),
        code=lambda wc: HASHES["paper"],
    shell:
        notebook_job("paper")
