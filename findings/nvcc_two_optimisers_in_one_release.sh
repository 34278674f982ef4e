#!/usr/bin/env bash
# 2026-11-28, nvcc 13.0.88 (nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt 13.0.88; nvidia-cuda-runtime 13.0.96).
#
# The same kernel, the same flags, `nvcc -ptx` for compute_75, 90, 100 and 120.
# Likely guess: PTX is portable, so one release makes the same instructions for all of them, as long as the source asks
# for nothing new; instructions counted in the PTX of one architecture hold for the others.
# Seen: for compute_75 to 90 the PTX is the same but for its .target line, "Based on NVVM 7.0.1"; for compute_100 and 120
# it is "Based on NVVM 20.0.0", another optimiser in the same release, which makes 121 statements where the other makes 71
# (it unrolls the loop further). Counts, budgets and whatever reads PTX are needed once for each optimiser.
# Needs a host compiler (g++), which nvcc preprocesses with.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: nvidia-cuda-nvcc==13.0.88 \
    nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
cuda=$(echo "$top"/venv/lib/python3*/site-packages/nvidia/cu13)
cat > kernel.cu <<'CUDA'
__global__ void smaller(const float* from, int* to, int count) {
  __shared__ float keys[64];
  keys[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  int place = 0;
  for (int i = 0; i < count; ++i) place += keys[i] < keys[threadIdx.x] ? 1 : 0;
  to[threadIdx.x] = place;
}
CUDA

for number in 75 90 100 120; do
  "$cuda"/bin/nvcc -ptx -arch=compute_$number -I"$cuda"/include kernel.cu -o $number.ptx
  grep -o 'NVVM [0-9.]*' $number.ptx > $number.nvvm
  grep -v '^\.target\|^//' $number.ptx > $number.body
  echo "compute_$number: $(tail -1 $number.nvvm), $(grep -c ';' $number.body) statements"
done
cmp 75.body 90.body
cmp 100.body 120.body
! cmp --silent 90.body 100.body
[ "$(tail -1 90.nvvm)" = "NVVM 7.0.1" ]
[ "$(tail -1 100.nvvm)" = "NVVM 20.0.0" ]
