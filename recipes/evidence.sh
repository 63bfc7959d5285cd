#!/usr/bin/env bash
# The runs behind docs/peers.md and docs/reproduction.md, one after the other; one that is finished is skipped, one that was
# stopped goes on.
#
#     bash recipes/evidence.sh DATA RUNS base [fig4] [peers] [controls]
#
# base      hybrid input, one spike, T = 5: seeds 0, 1 and 2, whose ANNs the others share; before all others
# fig4      the inputs of Fig. 4 and two controls at T = 1, 2, 3, 5 and 10; seed 0
# peers     the peers of Table II; seed 0
# controls  one switch each on top of the base; seeds 0, 1 and 2
#
# Parts may run side by side once base is there.
set -uo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
configs=$here/configs
failed=0

run() { # name, then what train.py takes on top of evidence.yaml
  local name=$1
  shift
  python "$here/train.py" "$configs/evidence.yaml" "$@" --data-root "$data" --out "$runs/$name" --resume || { failed=1 && echo "FAILED: $name"; }
}

base() {
  local seed
  for seed in 0 1 2; do run "hybrid-T5-s$seed" --set "seed=$seed"; done
}

fig4() {
  local variant T ann
  for T in 5 2 1 3 10; do
    [[ $T == 5 ]] || run "hybrid-T$T-s0" --ann "$runs/hybrid-T5-s0" --set "T=$T"
    for variant in direct direct_multi_spike hybrid_multi_spike poisson analogue temporal dct; do
      [[ $variant-$T == temporal-1 ]] && continue # its first spike comes at t = 2
      ann=(--ann "$runs/hybrid-T5-s0")
      [[ $variant != dct ]] || ann=(--ann "$runs/dct-T5-s0") # images in blocks take an ANN of their own
      [[ $variant-$T != dct-5 ]] || ann=()
      run "$variant-T$T-s0" "$configs/ablations/$variant.yaml" "${ann[@]}" --set "T=$T"
    done
  done
}

peers() {
  local peer
  for peer in diet_snn wu2019 sengupta2019 lu2020 kim2018 park2019 park2020 rathi2020; do
    case $peer in
      wu2019) run "$peer" "$configs/peers/$peer.yaml" ;; # from scratch
      *) run "$peer" "$configs/peers/$peer.yaml" --ann "$runs/hybrid-T5-s0" ;;
    esac
  done
  run kim2020 "$configs/peers/kim2020.yaml"
  run dct-T5-s0 "$configs/ablations/dct.yaml" --set T=5 # fig4's, for its ANN
  run garg2020 "$configs/peers/garg2020.yaml" --ann "$runs/dct-T5-s0"
}

controls() {
  local seed switch scale
  for seed in 0 1 2; do
    for switch in analogue fixed_leak fixed_threshold no_time_gradient full_time_gradient masked_surrogate hybrid_multi_spike; do
      run "$switch-T5-s$seed" "$configs/ablations/$switch.yaml" --ann "$runs/hybrid-T5-s$seed" --set "seed=$seed"
    done
    for scale in 0.1 0.4; do
      run "scale_$scale-T5-s$seed" --ann "$runs/hybrid-T5-s$seed" --set "seed=$seed" "threshold_scales=[$scale]"
    done
  done
}

for part in "$@"; do
  case $part in
    base | fig4 | peers | controls) "$part" ;;
    *) echo "base, fig4, peers or controls, not $part" && exit 2 ;;
  esac
done
exit $failed
