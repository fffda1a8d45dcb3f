#!/usr/bin/env bash
# One rank: gives COMMAND what torch.distributed reads, from what srun sets, and becomes it.
#
#   srun --ntasks-per-node=8 launch/slurm/rank.sh COMMAND...
#
# It becomes the command (exec) because SLURM signals only the process that it started, not that one's children.
set -euo pipefail
if [[ -z ${MASTER_ADDR:-} ]]; then
  read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # rank 0 is on the first node
fi
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))} # below the ports that Linux hands out itself
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$@"
