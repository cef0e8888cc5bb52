#!/usr/bin/env bash
# Runs a small batch through profiles/slurm for real: a Slurm of one node on this machine, on loopback alone, two
# checkpoints in three shards each, and the result compared with the same evaluation in one process. As root, on
# Debian or Ubuntu, where no Slurm is configured (its jobs find their cluster through /etc/slurm/slurm.conf only,
# which this writes and removes again). Takes some minutes: `bash tests/slurm/run.sh`. VENV: an environment other
# than .venv. Not part of test.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
conf=/etc/slurm/slurm.conf
gres=/etc/slurm/gres.conf

if [ "$(id -u)" != 0 ]; then
    echo "slurm test: this takes root, to write $conf and to start slurmctld and slurmd" >&2
    exit 2
fi
if [ -e "$conf" ]; then
    echo "slurm test: there is a $conf; this test is for machines without a Slurm of their own" >&2
    exit 2
fi
if ! command -v slurmctld slurmd sbatch > /dev/null; then
    apt-get update -qq && apt-get install -y -qq slurmctld slurmd slurm-client > /dev/null
fi
venv=${VENV:-$root/.venv}
[ -x "$venv/bin/snakemake" ] || bash "$root/run.sh" setup
"$venv/bin/python" -c "import snakemake_executor_plugin_slurm" 2> /dev/null ||
    "$venv/bin/python" -m pip install --quiet -r "$root/profiles/slurm/requirements.txt"

work=$(mktemp -d /tmp/fvlm-slurm-XXXXXX)
pids=()
cleanup() {
    scancel --user root 2> /dev/null || true
    # a batch that is stopped waits for its jobs, of which it would never hear again
    kill -KILL "${batch:-}" 2> /dev/null || true
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2> /dev/null || true; done
    rm -rf "$conf" "$gres" "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ---- a cluster of one node ----
mkdir -p "$work/state" "$work/spool" /etc/slurm
cat > "$conf" << CONF
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=16 RealMemory=128000 Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=$(hostname) Default=YES MaxTime=INFINITE State=UP
CONF
# two GPUs by name alone: jobs wait for them as for real ones, two at a time
touch "$work/gpu0" "$work/gpu1"
echo "NodeName=$(hostname) Name=gpu File=$work/gpu[0-1]" > "$gres"
slurmctld -D > "$work/slurmctld.log" 2>&1 &
pids+=($!)
slurmd -D > "$work/slurmd.log" 2>&1 &
pids+=($!)
for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format %T 2> /dev/null)" = idle ]; then break; fi
    sleep 1
done
sinfo
if [ "$(sinfo --noheader --format %T)" != idle ]; then
    tail -n 20 "$work"/slurm*.log >&2
    exit 1
fi
if ss -ltnp | grep -E 'slurm(ctld|d)' | grep -v '127\.0\.0\.1:'; then
    echo "slurm test: Slurm listens on more than loopback" >&2
    exit 1
fi

# ---- the batch ----
mkdir "$work/project"
cd "$work/project"
for name in Snakefile notebooks profiles fvlm_lib checkpoints; do ln -s "$root/$name" "$name"; done
cat > config.yaml << 'CONFIG'
checkpoints:
  early: checkpoints/demo/S-S/step_0100
  late: checkpoints/demo/S-S/step_3000
gap:
  data: {kind: procedural, split: test}
  num_samples: 24
  batch_size: 4
  num_fine: [1]
  dtype: null
  device: cpu
  seed: 0
  floor_samples: 4
shards: 3
scaling:
  num_bootstrap: 5
CONFIG
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
"$venv/bin/python" -m fvlm_lib batch --profile profiles/slurm --configfile config.yaml \
    --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 &
batch=$!
wait "$batch"
batch=""

# ---- what must have come of it ----
jobs=$(scontrol --oneliner show jobs | grep -c 'JobState=COMPLETED')
with_gpu=$(scontrol --oneliner show jobs | grep -c 'TresPerJob=gres:gpu:1')
"$venv/bin/python" -m fvlm_lib gap --checkpoint checkpoints/demo/S-S/step_3000 --output whole.json \
    --num-samples 24 --batch-size 4 --num-fine 1 --device cpu --floor-samples 4 > /dev/null 2>&1
"$venv/bin/python" - "$jobs" "$with_gpu" << 'CHECK'
import json
import sys

import pandas as pd

one, sharded = (json.load(open(path)) for path in ("whole.json", "results/gap/late.json"))
for result in (one, sharded):
    del result["parameters"]
assert one == sharded, "three shards on Slurm and one process give different results"
tables = [pd.read_parquet(path) for path in ("whole.parquet", "results/gap/late.parquet")]
pd.testing.assert_frame_equal(*tables, check_exact=True)
assert pd.read_csv("results/gap_table.csv")["id"].tolist() == ["early", "late"]
# six shards and two gaps with a GPU, the table and the paper's figures without
assert sys.argv[1:] == ["10", "8"], f"jobs completed, and with one GPU: {sys.argv[1:]}; must be 10 and 8"
print("slurm test: 10 jobs completed, 8 with one GPU each; the table is that of one process to the last digit")
CHECK
