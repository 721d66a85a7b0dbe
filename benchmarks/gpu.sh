#!/usr/bin/env bash
# Everything that can be shown on an NVIDIA GPU, in two stages of less than 9 minutes each, without a network:
#
#     benchmarks/gpu.sh kernels [FOLDER]     builds the kernels, tests them and the CUDA graphs, times the kernels
#     benchmarks/gpu.sh scripts [FOLDER]     trains each script for a short while, times the scripts
#
# FOLDER (gpu-report, if not given) then holds kernels.md and scripts.md (what passed, what failed, the tables), a .log of
# each part, and the pictures of the trainings. PYTHON=... chooses the interpreter. Needs PyTorch 2.10 or later with CUDA,
# its toolkit, numpy, pillow, tqdm, pytest and setuptools 77 or later; compute-sanitizer is used if it is there.
# Exit code: 0 if all parts passed, 1 if one failed, 2 if there is no GPU to run on.
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:-}
case $stage in kernels | scripts) ;; *)
    echo "usage: benchmarks/gpu.sh kernels|scripts [FOLDER]" >&2
    exit 2
    ;;
esac
python=${PYTHON:-python3}
scripts="vanilla_gan dcgan cgan wgan wgan_gp lsgan acgan fgan"
out=$(realpath -m "${2:-gpu-report}")
summary=$out/$stage.md
mkdir -p "$out"

environment='import sys, torch
gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else sys.exit("PyTorch sees no NVIDIA GPU here")
print(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}; torch {torch.__version__}, "
      f"CUDA {torch.version.cuda}, Python {sys.version.split()[0]}")'
machine=$("$python" -c "$environment") || exit 2
printf '# %s: %s\n\n| part | result | seconds |\n|---|---|---|\n' "$stage" "$machine" > "$summary"
echo "$machine; the report goes to $out"

failed=0
part() { # part NAME LIMIT COMMAND...: runs it, for at most LIMIT seconds, and notes how it went
    local name=$1 limit=$2 start=$SECONDS code result=passed
    shift 2
    timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
    code=$?
    if [ "$code" -ne 0 ]; then
        result="FAILED, exit code $code$([ "$code" -eq 124 ] && echo " (stopped after $limit s)")"
    elif grep -aq 'no CUDA graph' "$out/$name.log"; then
        result="FAILED, $(grep -ao 'no CUDA graph.*' "$out/$name.log" | head -n 1)"
    fi
    echo "| $name | $result | $((SECONDS - start)) |" | tee -a "$summary"
    [ "$result" = passed ] && return 0
    failed=1
    tail -n 5 "$out/$name.log"
    return 1
}

table() { # table NAME...: the tables that these parts have printed
    for name in "$@"; do
        grep -aq '^|' "$out/$name.log" && printf '\n## %s\n\n' "$name" && sed -n '/^|/p;/^$/p' "$out/$name.log"
    done >> "$summary"
}

if [ "$stage" = kernels ]; then
    # Nothing that follows says anything about a GPU without kernels for it
    part build 150 "$python" -m pip install --no-build-isolation --no-deps -e . &&
        part doctor 40 "$python" -c 'import sys, gan_kernels.__main__ as m; m.main(); sys.exit(m.gan_kernels.why_not("cuda"))' ||
        exit 1
    part tests 170 "$python" -m pytest -q -rs tests/test_graph.py tests/test_kernels.py -k "graph or gpu or cuda"
    if command -v compute-sanitizer > /dev/null; then
        for tool in memcheck racecheck; do
            part "$tool" 30 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m gan_kernels
        done
    fi
    part kernels 100 "$python" benchmarks/kernels.py --cuda --seconds 0.5
    table kernels
else
    for script in $scripts; do
        rm -rf "${out:?}/$script"
        part "train-$script" 25 "$python" "$script.py" --cuda --steps 500 --out "$out/$script"
        cp "$out/$script/training.gif" "$out/$script.gif" 2> /dev/null
        cp "$(ls "$out/$script"/samples/*.png 2> /dev/null | tail -n 1)" "$out/$script.png" 2> /dev/null
    done
    part throughput-32 200 "$python" benchmarks/throughput.py --cuda --seconds 1 --image-size 32
    part throughput-64 100 "$python" benchmarks/throughput.py dcgan wgan wgan_gp --cuda --seconds 1 --image-size 64
    table throughput-32 throughput-64
    for script in $scripts; do
        [ -e "$out/$script/metrics.csv" ] && printf '\n## %s, 500 steps\n\n```\n' "$script" &&
            sed -n '1p;$p' "$out/$script/metrics.csv" && printf '```\n\n![samples](%s.png)\n' "$script"
    done >> "$summary"
fi
echo "all parts $([ "$failed" -eq 0 ] && echo passed || echo "did not pass"): $summary"
exit "$failed"
