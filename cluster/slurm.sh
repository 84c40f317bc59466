#!/usr/bin/env bash
# One Slurm job = one Ray cluster = one run. From the repository's root, on a file system that all nodes share:
#
#   sbatch cluster/slurm.sh --preset mnist --data.path /shared/data/mnist --name mnist --storage /shared/runs \
#     --scale.num_workers 2 --scale.cpus_per_worker 7
#
# The arguments go to `python -m npdraw_dist.train`, or to a module that is named first, such as tune_spaces.sweep.
# The same command again resumes. At the time limit the job goes back to the queue and resumes by itself.
# EDIT the resources, and the line that activates the environment.
#SBATCH --job-name=npdraw
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --exclusive
# Two minutes before the time limit Slurm tells this script, which requeues the job. The log goes on in the same file.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# EDIT: the environment with `pip install -e '.[cluster,gpu]'`.
# source .venv/bin/activate

# EDIT: how often a job may come back to the queue, so that one that gets nowhere ends.
most_requeues=100

# Since Slurm 22.05 srun does not take --cpus-per-task of sbatch: a step would have one CPU.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The token is in the home folder, which all nodes share. It is made once and never printed.
export RAY_AUTH_MODE=token
(umask 077 && ray get-auth-token --generate > /dev/null 2>&1) || {
  echo "error: ray get-auth-token failed; is the environment activated in cluster/slurm.sh?" >&2
  exit 2
}

# The first address of the node. Its host name may resolve to 127.0.1.1 there.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk 'NR == 1 {print $1}'):6379

# EDIT to train over another network. Default: Gloo (CPU) takes the one of Ray's address, NCCL (GPU) chooses.
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0

# Ray sees the node's memory, not the job's. Its object store gets 30% of the job's, and fits into /dev/shm.
store=()
if [ "${SLURM_MEM_PER_NODE:-0}" -gt 0 ]; then
  bytes=$((SLURM_MEM_PER_NODE * 1048576 * 3 / 10))
  shm=$(($(df --block-size=1 --output=avail /dev/shm | tail -n 1) * 95 / 100))
  store=(--object-store-memory "$((bytes < shm ? bytes : shm))")
fi

module=npdraw_dist.train
if [[ ${1:-} == [!-]* ]]; then
  module=$1
  shift
fi

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most_requeues" ]; then
    echo "the time limit is near, after $most_requeues requeues: submit the same command to go on" >&2
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "the time limit is near: job $SLURM_JOB_ID is requeued, and resumes from its last checkpoint" >&2
  else
    echo "the time limit is near, and the job cannot be requeued: submit the same command to go on" >&2
  fi
}
trap requeue USR1

# Ray's dashboard stays on the loopback of the head node. symmetric-run starts Ray on every node, runs the command
# on the head and stops every Ray of the node at the end, so the nodes must be exclusive.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
# The command makes this file on the head, where this script runs too: symmetric-run ends with 0 if Ray did not start.
begun=${TMPDIR:-/tmp}/npdraw-$SLURM_JOB_ID
rm -f "$begun"
srun ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" ${store[@]+"${store[@]}"} \
  --dashboard-host 127.0.0.1 -- sh -c 'touch "$0" && exec "$@"' "$begun" \
  env RAY_ADDRESS="$address" python -m "$module" "$@" &
step=$!
# Bash answers a signal only between two commands, or while it waits. A wait that the signal ended is taken up again, once
# more after the end of the step, for its own status.
signalled=$((128 + $(kill -l USR1)))
runs=yes
while [ "$runs" ]; do
  kill -0 "$step" 2> /dev/null || runs=
  status=0
  wait "$step" || status=$?
  [ "$status" -eq "$signalled" ] || runs=
done
if [ "$status" -eq 0 ] && [ ! -e "$begun" ]; then
  echo "error: Ray did not start on $(hostname), so nothing ran" >&2
  status=1
fi
rm -f "$begun"
exit "$status"
