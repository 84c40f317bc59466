#!/usr/bin/env bash
# One Slurm job = one Ray cluster = one run. From the repository's root, on a file system that all nodes share:
#
#   sbatch cluster/slurm.sh --preset mnist --data.path /shared/data/mnist --name mnist --storage /shared/runs \
#     --scale.num_workers 2 --scale.cpus_per_worker 7
#
# The arguments go to `python -m npdraw_dist.train`, or to a module that is named first, such as tune_spaces.sweep.
# The same command again resumes, and so does a requeued job.
# EDIT the resources, and the line that activates the environment.
#SBATCH --job-name=npdraw
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# EDIT: the environment with `pip install -e .`.
# source .venv/bin/activate

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

module=npdraw_dist.train
if [[ ${1:-} == [!-]* ]]; then
  module=$1
  shift
fi

# Ray's dashboard stays on the loopback of the head node. symmetric-run starts Ray on every node, runs the command
# on the head and stops every Ray of the node at the end, so the nodes must be exclusive.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
srun ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --dashboard-host 127.0.0.1 -- \
  env RAY_ADDRESS="$address" python -m "$module" "$@"
