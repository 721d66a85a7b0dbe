#!/usr/bin/env bash
# Everything that can be shown on an NVIDIA GPU, without a network, in three stages:
#
#     benchmarks/gpu.sh kernels [FOLDER]     builds, tests and times the kernels, tests CUDA graphs
#     benchmarks/gpu.sh scripts [FOLDER]     times a step of each script
#     benchmarks/gpu.sh train [FOLDER]       runs README.md's training commands and scores the runs;
#                                            needs data/mnist-32 and data/mnist-28 (prepare.py)
#
# Then FOLDER (default: gpu-report) holds STAGE.tgz: STAGE.md (what passed, what failed, the tables),
# a .log and the raw numbers of each part, and the pictures. PYTHON=... chooses the interpreter.
# Needs PyTorch 2.10 or later with CUDA and its toolkit, setuptools, numpy, pillow, tqdm and pytest;
# compute-sanitizer is used if it is there.
# Exit code: 0 if all parts passed, 1 if one failed, 2 if there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:-}
case $stage in
    kernels | scripts | train) ;;
    *)
        echo "usage: benchmarks/gpu.sh kernels|scripts|train [FOLDER]" >&2
        exit 2
        ;;
esac
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
out=$(realpath -m "${2:-gpu-report}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
summary=$work/$stage.md

environment='import sys, torch
if not torch.cuda.is_available():
    sys.exit("PyTorch sees no NVIDIA GPU here")
gpu = torch.cuda.get_device_properties(0)
print(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor};",
      f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}")'
machine=$("$python" -c "$environment") || exit 2
printf '# %s: %s\n\n| part | result | seconds |\n|---|---|---|\n' "$stage" "$machine" > "$summary"
echo "$machine"

failed=0
part() { # part NAME LIMIT COMMAND...: runs it for at most LIMIT seconds and notes how it went
    local name=$1 limit=$2 start=$SECONDS result=passed
    shift 2
    timeout --kill-after=10 "$limit" "$@" > "$work/$name.log" 2>&1 || result="FAILED, exit code $?"
    echo "| $name | $result | $((SECONDS - start)) |" | tee -a "$summary"
    [ "$result" = passed ] && return
    failed=1
    tail -n 5 "$work/$name.log"
    return 1
}

finish() { # packs what there is and ends the script
    mkdir -p "$out"
    for log in "$work"/*.log; do
        grep -aq '^|' "$log" && printf '\n## %s\n\n' "$(basename "$log" .log)" && grep -a '^|' "$log"
    done >> "$summary"
    tar czf "$out/$stage.tgz" -C "$work" --exclude checkpoint.pt . && echo "$out/$stage.tgz"
    exit "$failed"
}

if [ "$stage" = kernels ]; then
    # In a copy without pyproject.toml, which a setuptools before 77 rejects
    mkdir "$work/build"
    cp -r setup.py csrc gan_kernels "$work/build"
    # Nothing that follows says anything about a GPU without kernels for it
    part build 150 env -C "$work/build" "$python" setup.py build_ext --inplace || finish
    cp "$work"/build/gan_kernels/_[Cb]* gan_kernels
    rm -r "$work/build"
    part doctor 40 "$python" -c 'import sys, gan_kernels.__main__ as doctor
doctor.main()
sys.exit(doctor.gan_kernels.why_not("cuda"))' || finish
    part tests 400 "$python" -m pytest -q -rs tests/test_graph.py tests/test_kernels.py
    if command -v compute-sanitizer > /dev/null; then
        # Without PyTorch's cache every allocation has its own bounds
        for tool in memcheck racecheck; do
            part "$tool" 120 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
                --kernel-name kns=3gan4cuda --report-api-errors no --error-exitcode 1 \
                "$python" -m gan_kernels
        done
    fi
    part kernels 200 "$python" benchmarks/kernels.py --cuda --seconds 0.5 --json "$work/kernels.json"
elif [ "$stage" = scripts ]; then
    measure() { # measure NAME OPTIONS...
        part "throughput-$1" 300 "$python" benchmarks/throughput.py --cuda --seconds 1 \
            --json "$work/throughput-$1.json" "${@:2}"
    }
    measure 32
    measure 32-128 dcgan wgan_gp r3gan --width 128
    measure 64 dcgan wgan_gp r3gan --image-size 64
else
    # The commands in README.md's table of the scripts: `dcgan.py --epochs 25`, 18 minutes
    mapfile -t commands < <(grep -oP '`\K\w+\.py --[^`]+(?=`, \d+ minute)' README.md)
    runs=()
    for command in "${commands[@]}"; do
        script=${command%% *}
        # Not quoted: the command is several words
        part "$script" 600 "$python" $command --cuda --out "$work/${script%.py}" || continue
        [[ $command == *mnist* ]] && runs+=("$work/${script%.py}")
    done
    part score 300 "$python" evaluate.py score --cuda --data data/mnist-32 "${runs[@]}"
fi
finish
