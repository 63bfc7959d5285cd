#!/usr/bin/env bash
# What a GPU has to show, in one command and under 4 minutes on an H100:
#
#     benchmarks/on_gpu.sh [FOLDER]          (default benchmarks/results/gpu)
#
# Every part runs, whatever became of those before, until the time is over (ON_GPU_SECONDS, default 235); the exit status is 1 if
# any failed. The folder gets the benchmarks' JSON files, the profile of a training step, report.md (which part took how long and
# whether it passed, the tables, the ends of the logs) and rest.tar.gz (all logs, tables and plots): 8 files at most.
# Then `python benchmarks/make_tables.py` puts what lies below benchmarks/results into docs/benchmarks.md.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:-benchmarks/results/gpu}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD/plugin${PYTHONPATH:+:$PYTHONPATH}
python=$(command -v python || command -v python3)
total=${ON_GPU_SECONDS:-235}
failed=0

part() { # name, seconds it may take, command...
  local name=$1 limit=$2 begin=$SECONDS left=$((total - SECONDS)) status verdict
  shift 2
  if ((left < 5)); then
    status=1 verdict="not run: the time was over"
  else
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" >"$work/$name.log" 2>&1
    status=$?
    case $status in
      0) verdict=passed ;;
      124 | 137) verdict="failed: out of time" ;;
      *) verdict="failed: exit status $status" ;;
    esac
  fi
  ((status == 0)) || failed=1
  printf '| %s | %d | %s |\n' "$name" "$((SECONDS - begin))" "$verdict" | tee -a "$work/parts"
}

bench() { # name, seconds, script, arguments...
  local name=$1 limit=$2 script=$3
  shift 3
  part "$name" "$limit" "$python" "benchmarks/$script" --device cuda "$@" --out "$work/$name.json"
}

spread=()
"$python" -c "import xdist" 2>/dev/null && spread=(-n 12)
gpu_tests=("$python" -m pytest tests/test_gpu.py tests/test_cuda_graph_docs.py --require-gpu -q -p no:cacheprovider)
neuron=(--kinds conv fc --steps 5 --rounds 11 --max-compiled-T 0)

part test_gpu 75 "${gpu_tests[@]}" "${spread[@]}" -k "not more_than_2_to_the_31"
bench overhead 30 bench_overhead.py --calls 10 --rounds 9
bench neuron_f32 40 bench_neuron.py "${neuron[@]}"
bench network_bf16 55 bench_network.py --networks vgg16 --rounds 7 --precision bf16 --batch-size 128
bench network_f32 55 bench_network.py --networks vgg16 --rounds 7 --batch-size 64
part profile 30 "$python" benchmarks/profile_step.py --device cuda --out "$work/profile_vgg16_step.txt"
bench neuron_bf16 40 bench_neuron.py "${neuron[@]}" --dtype bfloat16
part test_gpu_large 30 "${gpu_tests[@]}" -k more_than_2_to_the_31
if sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer); then
  part memcheck 45 "$sanitizer" --tool memcheck --error-exitcode 9 "${gpu_tests[@]}" -k "gradients_are_the_same_twice or at_size"
else
  echo "| memcheck | 0 | not run: compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin |" | tee -a "$work/parts"
fi

{
  printf '| part | s | |\n|---|---|---|\n'
  cat "$work/parts"
  for table in "$work"/*.md; do
    [[ -e $table ]] && printf '\n' && cat "$table"
  done
  for log in "$work"/*.log; do
    printf '\nThe end of %s:\n\n```\n' "$(basename "$log")"
    tail -n 6 "$log" | cut -c -300
    printf '```\n'
  done
} >"$work/report"
cp "$work"/*.json "$work"/profile_vgg16_step.txt "$out" 2>/dev/null
cp "$work/report" "$out/report.md"
(cd "$work" && find . -type f \( -name '*.log' -o -name '*.md' -o -name '*.png' \) -print0 | tar -czf "$out/rest.tar.gz" --null -T -)
exit $failed
