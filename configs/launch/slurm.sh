#!/bin/bash
# A run on a SLURM cluster, one process per GPU; at the warning before its time limit it saves and is requeued.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 configs/launch/slurm.sh configs/NAME.yaml [key=value ...]
#
# All nodes must see the code, the shards and the run directory in the same places. Without GPUs, --ntasks-per-node is
# the number of processes per node; add trainer.accelerator=cpu. In an interactive shell of SLURM, call train.py directly.
#SBATCH --job-name=vlad
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# Two minutes before the time limit SLURM signals this script, which passes it on to every process.
#SBATCH --signal=B:USR1@120
set -uo pipefail

# A process that dies ends all of them.
${SRUN:-srun --kill-on-bad-exit=1} "${PYTHON:-.venv/bin/python}" train.py "$@" \
  trainer.nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" &
processes=$!

warned=0
trap 'warned=1; kill -USR1 "$processes"' USR1 TERM
wait "$processes"
status=$?
while kill -0 "$processes" 2>/dev/null; do # the trap has interrupted the wait; the processes are saving
  wait "$processes"
  status=$?
done

if [ "$warned" = 1 ] && [ "$status" = 0 ]; then
  ${SCONTROL:-scontrol} requeue "$SLURM_JOB_ID"
fi
exit "$status"
