#!/usr/bin/env bash
# All that is worth knowing of a GPU that this project has not met, in calls of at most eight minutes each:
#
#   cluster/first_gpu_run.sh DATA OUT [--small] [--minutes 7.5]
#
# DATA  the folder of MNIST's IDX files, or `digits` for scikit-learn's digits, which need no file. Other data of images
#       of 28x28: --source and its name (`parquet` for what npdraw_dist.prepare wrote).
# OUT   the folder for first_gpu.md and first_gpu.json, and all that the steps leave. Keep it between the calls.
#
# The same command again goes on; a step that is done is not run again. The status is 0 once all are done, 75 while some are
# left. A loop:
#
#   until cluster/first_gpu_run.sh DATA OUT; do [ $? -eq 75 ] || break; done
#
# --small runs the same with small sizes; it needs no GPU.
set -euo pipefail

if [ $# -lt 2 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
  exit 2
fi
data=$1 out=$2
shift 2
case $data in
  digits | /*) ;;
  *) data=$PWD/$data ;;
esac
case $out in
  /*) ;;
  *) out=$PWD/$out ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python}" -m cluster.first_gpu --data "$data" --out "$out" "$@"
