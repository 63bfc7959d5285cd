#!/usr/bin/env bash
# The runs behind docs/peers.md, one after the other; one that is finished is skipped, one that was stopped goes on.
#
#     bash recipes/evidence.sh DATA RUNS base [fig4] [peers] [controls]
#
# base      hybrid input, one spike, T = 5, seeds 0, 1 and 2, whose ANNs the others share, and what more than one part needs
# fig4      the inputs of Fig. 4 and two controls at T = 1, 2, 3, 5 and 10; seed 0
# peers     the peers of Table II; seed 0
# controls  one switch each on top of the base; seeds 0, 1 and 2
#
# Once base is there, the other parts may run side by side. A run that fails does not stop those behind it; a signal does.
set -uo pipefail
here=$(dirname "$0")
configs=$here/configs
failed=0

usage() {
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

run() { # name, then what train.py takes on top of evidence.yaml
  local name=$1 status
  shift
  python "$here/train.py" "$configs/evidence.yaml" "$@" --data-root "$data" --out "$runs/$name" --resume
  status=$?
  ((status < 128)) || exit $status # a signal
  ((status == 0)) || { failed=1 && echo "FAILED: $name" >&2; }
}

variant() { # config in ablations, T
  local ann=hybrid-T5-s0
  [[ $1 != dct ]] || ann=dct-T5-s0
  run "$1-T$2-s0" "$configs/ablations/$1.yaml" --ann "$runs/$ann" --set "T=$2"
}

base() {
  local seed
  for seed in 0 1 2; do run "hybrid-T5-s$seed" --set "seed=$seed"; done
  run dct-T5-s0 "$configs/ablations/dct.yaml" --set T=5 # images in blocks take an ANN of their own
  variant analogue 5
  variant hybrid_multi_spike 5
  ((failed == 0)) || exit 1
}

fig4() {
  local name T
  for T in 5 2 1 3 10; do
    [[ $T == 5 ]] || run "hybrid-T$T-s0" --ann "$runs/hybrid-T5-s0" --set "T=$T"
    for name in direct direct_multi_spike hybrid_multi_spike poisson dct analogue temporal; do
      [[ $name-$T == dct-5 || $name-$T == temporal-1 ]] || variant "$name" "$T" # temporal's first spike comes at t = 2
    done
  done
}

peers() {
  local name
  for name in diet_snn sengupta2019 lu2020 kim2018 park2019 park2020 rathi2020; do
    run "$name" "$configs/peers/$name.yaml" --ann "$runs/hybrid-T5-s0"
  done
  for name in wu2019 kim2020; do run "$name" "$configs/peers/$name.yaml"; done # from scratch
  run garg2020 "$configs/peers/garg2020.yaml" --ann "$runs/dct-T5-s0"
}

controls() {
  local seed name
  for seed in 0 1 2; do
    for name in analogue fixed_leak fixed_threshold no_time_gradient full_time_gradient masked_surrogate hybrid_multi_spike; do
      run "$name-T5-s$seed" "$configs/ablations/$name.yaml" --ann "$runs/hybrid-T5-s$seed" --set T=5 "seed=$seed"
    done
    for name in 0.1 0.4; do
      run "scale_$name-T5-s$seed" --ann "$runs/hybrid-T5-s$seed" --set "seed=$seed" "threshold_scales=[$name]"
    done
  done
}

(($# > 2)) || usage
data=$1 runs=$2
shift 2
for part in "$@"; do
  case $part in
    base | fig4 | peers | controls) ;;
    *) echo "a part must be base, fig4, peers or controls, got $part" >&2 && usage ;;
  esac
done
for part in "$@"; do "$part"; done
exit $failed
