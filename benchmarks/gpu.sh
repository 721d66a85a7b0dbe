#!/usr/bin/env bash
# Everything that can be shown on an NVIDIA GPU, in one command and less than 10 minutes, without a network:
#
#     benchmarks/gpu.sh [FOLDER]          FOLDER: gpu-report, if not given; PYTHON=... chooses the interpreter
#
# Builds the kernels, runs the tests, times kernels and scripts, trains all five for a short while. FOLDER then holds
# summary.md (what passed, what failed, the tables), a .log of each part, and the pictures of the trainings.
# Needs PyTorch 2.10 or later with CUDA, its toolkit, numpy, pillow, tqdm, pytest and setuptools 77 or later.
# Exit code: 0 if all parts passed, 1 if one failed, 2 if there is no GPU to run on.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=$(realpath -m "${1:-gpu-report}")
mkdir -p "$out"

environment='import sys, torch
gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else sys.exit("PyTorch sees no NVIDIA GPU here")
print(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}; torch {torch.__version__}, "
      f"CUDA {torch.version.cuda}, Python {sys.version.split()[0]}")'
machine=$("$python" -c "$environment") || exit 2
printf '# %s\n\n| part | result | seconds |\n|---|---|---|\n' "$machine" > "$out/summary.md"
echo "$machine; the report goes to $out"

failed=0
part() { # part NAME LIMIT COMMAND...: runs it, for at most LIMIT seconds, and notes how it went
    local name=$1 limit=$2 start=$SECONDS code result=passed
    shift 2
    timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
    code=$?
    if [ "$code" -ne 0 ]; then
        result="FAILED, exit code $code$([ "$code" -eq 124 ] && echo " (stopped after $limit s)")"
        failed=1
    fi
    echo "| $name | $result | $((SECONDS - start)) |" | tee -a "$out/summary.md"
    [ "$code" -eq 0 ] || tail -n 5 "$out/$name.log"
}

part build 180 "$python" -m pip install --no-build-isolation --no-deps -e .
part doctor 60 "$python" -m gan_kernels
for script in vanilla_gan dcgan cgan wgan wgan_gp; do
    rm -rf "$out/$script"
    part "train-$script" 60 "$python" "$script.py" --cuda --steps 500 --out "$out/$script"
    cp "$out/$script/training.gif" "$out/$script.gif" 2> /dev/null
    cp "$(ls "$out/$script"/samples/*.png 2> /dev/null | tail -n 1)" "$out/$script.png" 2> /dev/null
done
part kernels 90 "$python" benchmarks/kernels.py --cuda --seconds 0.5
part throughput-32 90 "$python" benchmarks/throughput.py --cuda --seconds 1.5 --image-size 32
part throughput-64 90 "$python" benchmarks/throughput.py --cuda --seconds 1.5 --image-size 64
part tests 300 "$python" -m pytest -q -rs

for name in kernels throughput-32 throughput-64; do
    grep -aq '^|' "$out/$name.log" && printf '\n## %s\n\n' "$name" && sed -n '/^|/p;/^$/p' "$out/$name.log"
done >> "$out/summary.md"
for script in vanilla_gan dcgan cgan wgan wgan_gp; do
    [ -e "$out/$script/metrics.csv" ] && printf '\n## %s, 500 steps\n\n```\n' "$script" &&
        sed -n '1p;$p' "$out/$script/metrics.csv" && printf '```\n\n![samples](%s.png)\n' "$script"
done >> "$out/summary.md"
echo "all parts $([ "$failed" -eq 0 ] && echo passed || echo "did not pass"): $out/summary.md"
exit "$failed"
