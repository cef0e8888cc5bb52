# A study: every run of a config trained, every checkpoint evaluated, one table.
#
#   bash run.sh study                                   config/study.yaml
#   bash run.sh study --configfile config/mine.yaml     your own
#
# Jobs are ids, never paths. A training's checkpoints are not declared: Snakemake deletes what a job that was stopped
# had declared, and this one goes on from what it left. What is declared is the record of its end. A training does not
# depend on the code, only on its config: the table says which code made a row. `rule all` lists every intermediate: else
# a failed re-run, which deletes its outputs, would leave an old table looking up to date.
import hashlib
import json
import os
import shlex
import sys
from dataclasses import asdict
from importlib.util import find_spec

from fvlm_lib.batch.config import gap_arguments
from fvlm_lib.batch.study_config import read_study, wildcards
from fvlm_lib.yaml_files import read_yaml

if not workflow.configfiles:
    sys.exit("there is no config; add --configfile config/study.yaml")
# relative, so that a project that was moved or copied is still up to date
CONFIGFILE = os.path.relpath(workflow.configfiles[-1])
try:
    for file in workflow.configfiles:
        read_yaml(os.path.relpath(file))  # Snakemake takes the last of equal keys
    STUDY = read_study(config, CONFIGFILE)
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
PYTHON = shlex.quote(sys.executable)
# Jobs are told the config by the environment: its name in their commands would have all of them run again where the
# same study is run by another file, such as one that was cut.
os.environ["FVLM_STUDY"] = CONFIGFILE
LOGS = f"{STUDY.output}/logs"
GAPS = expand(f"{STUDY.output}/gap/{{evaluation}}.{{suffix}}", evaluation=STUDY.evaluations, suffix=("json", "parquet"))


wildcard_constraints:
    run=wildcards(STUDY.runs),
    evaluation=wildcards(STUDY.evaluations),


rule all:
    input:
        expand(f"{STUDY.output}/trained/{{run}}.json", run=STUDY.runs),
        GAPS,
        STUDY.table,
        STUDY.table_csv,


def training(wc):
    """All that a training depends on, as JSON."""
    run = STUDY.runs[wc.run]
    return json.dumps([run.seed, asdict(run.config)])


rule train:
    output:
        f"{STUDY.output}/trained/{{run}}.json",
    params:
        training=training,
    log:
        f"{LOGS}/train/{{run}}.log",
    shell:
        f'exec {PYTHON} -m fvlm_lib study-train "$FVLM_STUDY" --run {{wildcards.run}} 2> {{log:q}}'


def record(wc):
    """What says that the checkpoint of an evaluation is there."""
    return STUDY.record(STUDY.evaluations[wc.evaluation].run)


def arguments(wc):
    """What an evaluation is made with."""
    return shlex.join(gap_arguments(STUDY.gap_parameters(wc.evaluation)))


rule evaluate:
    input:
        record,
    output:
        result=f"{STUDY.output}/gap/{{evaluation}}.json",
        table=f"{STUDY.output}/gap/{{evaluation}}.parquet",
    params:
        arguments=arguments,
    log:
        f"{LOGS}/evaluate/{{evaluation}}.log",
    priority: 10  # before more is trained, so that there is something to look at early
    shell:
        f"exec {PYTHON} -m fvlm_lib gap {{params.arguments}} --output {{output.result:q}} > {{log:q}} 2>&1"


def table_code(wc):
    """Changes with the code that makes the table."""
    return hashlib.sha256(Path(find_spec("fvlm_lib.gap.study_table").origin).read_bytes()).hexdigest()[:16]


rule table:
    input:
        GAPS,
    output:
        STUDY.table,
        STUDY.table_csv,
    params:
        code=table_code,
    log:
        f"{LOGS}/table.log",
    shell:
        f'exec {PYTHON} -m fvlm_lib study-table "$FVLM_STUDY" > {{log:q}} 2>&1'
