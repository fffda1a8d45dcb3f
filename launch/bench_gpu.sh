#!/usr/bin/env bash
# What one GPU reaches: every lever of a training step, the paper's step coded literally (docs/method.md), errors
# against float64, the batch that fits, the ten heaviest kernels, the loader. It ends within 8 minutes: runs for which
# no time is left are named in the tables.
#
#   launch/bench_gpu.sh OUT [SHARDS]
#
# OUT/tables.md holds the tables, OUT/*.json the numbers. SHARDS is a split folder, as shards/train; without it the
# loader is left out. In the environment: BENCH_HALF=fp16 for a V100; BENCH_ARGS for further options of every run,
# as "--set data.image_size=64"; BENCH_STEPS (10); BENCH_SECONDS (470), when the run at hand is ended and no other begins.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$(dirname "$0")/.. out=$1 shards=${2:-} half=${BENCH_HALF:-bf16} steps=${BENCH_STEPS:-10} limit=${BENCH_SECONDS:-470}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out" && : >"$out/tables.md"

fixed="--config $root/configs/default.yaml --set training.global_batch_size=100"
fixed+=" --set training.micro_batch_size=100 --set loss_weights.ssim=0" # the paper's losses
fixed+=" ${BENCH_ARGS:-}"

# NAME ARGUMENT...: the output of Python under a heading. One that fails or is out of time says so; the others go on.
run() {
  local name=$1 left=$((limit - SECONDS)) code=0
  shift
  printf '\n## %s\n\n```\n' "$name" >>"$out/tables.md"
  if [ "$left" -gt 0 ]; then
    timeout --kill-after=5 "$left" python "$@" >>"$out/tables.md" 2>"$out/errors.txt" || code=$?
  fi
  if [ "$left" -le 0 ] || { [ $code -ne 0 ] && [ "$SECONDS" -ge "$limit" ]; }; then
    echo "not done within $limit s (BENCH_SECONDS)" >>"$out/tables.md"
  elif [ $code -ne 0 ]; then
    echo "exit code $code: $(tail -n 1 "$out/errors.txt")" >>"$out/tables.md"
  fi
  printf '```\n' >>"$out/tables.md"
  echo "$name, after $SECONDS s" >&2
}

bench() { # NAME OPTION...: one table, one JSON
  local name=$1
  shift
  # shellcheck disable=SC2086 # options are words
  run "$name" "$root/benchmarks/literal_step.py" $fixed --steps "$steps" "$@" --out "$out/${name// /-}.json"
}

plain="--set speed.channels_last=false --set speed.tf32=false --set speed.cudnn_benchmark=false --set optimizer.fused=false"
amp="--set training.mixed_precision=$half"
# The compiler takes minutes, so its runs come last: if time runs out before, the rest is there.
# shellcheck disable=SC2086
{
  bench "float32, no lever" $plain --literal --check
  bench "float32" --check
  bench "$half, no lever" $plain $amp --literal --check
  bench "$half, channels last" $plain $amp --set speed.channels_last=true --check
  bench "$half, fused Adam" $plain $amp --set optimizer.fused=true
  bench "$half, all but the compiler" $amp --check --profile
  bench "$half, penalty every 4" $amp --set penalty.every=4
  bench "$half, with ssim" $amp --set loss_weights.ssim=60
  for size in 25 50 200 400; do
    bench "$half, batch $size" $amp --set training.global_batch_size=$size --set training.micro_batch_size=$size
  done
  for size in 64 256; do
    bench "$half, $size px" $amp --set data.image_size=$size --set training.global_batch_size=50 --set training.micro_batch_size=50
  done
}
[ -z "$shards" ] || run loader -m pipeline bench loader "$shards"
# shellcheck disable=SC2086
{
  bench "$half, compiled" $amp --set speed.compile=default --check
  bench "$half, compiled, CUDA graphs" $amp --set speed.compile=reduce-overhead --check
}
cat "$out/tables.md"
