#!/usr/bin/env bash
# Measures a new kind of GPU: the tests that need one, the bench, and a training with its samples.
#
#   cluster/first_gpu.sh DATA OUT
#
# DATA  the folder of MNIST's IDX files, or `digits` for scikit-learn's
# OUT   the folder of all outputs; the same command again resumes the training
set -uo pipefail
if [ $# -ne 2 ]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
  exit 2
fi
python=${PYTHON:-python}
mkdir -p "$2" && out=$(realpath "$2") || exit 2
data=(--preset digits)
[ "$1" = digits ] || data=(--preset mnist --data.path "$(realpath "$1")")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
status=0

step() { # its name, then its command: the output goes to OUT/NAME.log
  echo "$1: ${*:2}"
  "${@:2}" > "$out/$1.log" 2>&1 && return
  status=1
  echo "$1 failed: $(tail -n 1 "$out/$1.log")" >&2
}

step machine "$python" -c '
import torch
print(torch.__version__, torch.version.cuda, torch.cuda.get_device_properties(0))'
[ "$status" = 0 ] || exit 1
step tests "$python" -m pytest -q -m gpu -rs -p no:cacheprovider tests
step bench "$python" -m npdraw_dist.bench "${data[@]}" --against none --out "$out/bench.json"
step train "$python" -m npdraw_dist.train "${data[@]}" --storage "$out/runs" --name first_gpu --scale.num_workers 1
echo "outputs: $out"
exit "$status"
