#!/usr/bin/env bash
# Submits this working copy as a Ray job and follows its log. The same command again resumes the run.
#
#   cluster/submit.sh [--address URL] --storage DIR_OR_URI -- --preset mnist --name mnist --scale.num_workers 2
#
# --address  the dashboard, through a tunnel; default: $RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265
# --storage  where train and sweep have their run folders: a folder that all nodes share, or s3://..., gs://...
# The arguments after -- go to `python -m npdraw_dist.train`, or to a module that is named first:
#
#   cluster/submit.sh --storage DIR_OR_URI -- tune_spaces.sweep --space structure --preset mnist
#   cluster/submit.sh -- npdraw_dist.evaluate --model URI --out URI
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
storage=
while [ $# -gt 0 ]; do
  case $1 in
    --address | --storage)
      [ $# -ge 2 ] || fail "$1 needs a value"
      if [ "$1" = --address ]; then address=$2; else storage=$2; fi
      shift 2
      ;;
    -h | --help)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1; flags of npdraw_dist.train go after --" ;;
  esac
done

module=npdraw_dist.train
if [[ ${1:-} == [!-]* ]]; then
  module=$1
  shift
fi
case $module in
  npdraw_dist.train | tune_spaces.sweep)
    case $storage in
      /* | *://*) ;;
      "") fail "--storage is missing: a folder that all nodes share, or s3://..." ;;
      *) fail "--storage $storage is relative to a job's own folder and would be lost; give /... or s3://..." ;;
    esac
    set -- --storage "$storage" "$@"
    ;;
  *) [ -z "$storage" ] || fail "$module takes no --storage" ;;
esac
command -v ray > /dev/null || fail "ray is not installed here: pip install -e '.[cluster]'"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -r "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
  fail "no token: set RAY_AUTH_TOKEN_PATH, or make one before the cluster with ray get-auth-token --generate"
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export RAY_AUTH_MODE=token
exec ray job submit --address "$address" --working-dir "$root" --runtime-env "$root/cluster/runtime_env.yaml" -- \
  python -m "$module" "$@"
