#!/usr/bin/env bash
# Both recipes under the same budget on one GPU, for docs/results.md: paper.yaml and default.yaml at 128 x 128.
#
#   launch/results_gpu.sh SHARDS WEIGHTS OUT [--set KEY=VALUE ...]
#
# SHARDS holds train/ and test/; WEIGHTS is a .safetensors file of VGG-16. Further options go to both runs, as
#   --set training.pretrain_steps=2000 --set training.fusion_steps=4000 --set training.mixed_precision=bf16
# OUT/paper and OUT/default are the run folders; OUT/results.md holds both tables. Run again to resume.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
shards=$1 weights=$2 out=$3
shift 3
configs=$(dirname "$0")/../configs
mkdir -p "$out"
for recipe in paper default; do
  python -m pipeline run --config "$configs/$recipe.yaml" --set run_dir="$out/$recipe" --set data.shards="$shards" \
    --set perceptual.arch=vgg16 --set perceptual.weights="$weights" "$@" 2>&1 | tee -a "$out/$recipe.log"
done
for recipe in paper default; do
  printf '\n## %s.yaml\n\n' "$recipe"
  cat "$out/$recipe/evaluation/metrics.md"
  grep -E '^(pretrain|train) [0-9]' "$out/$recipe.log" | tail -n 1
done | tee "$out/results.md"
