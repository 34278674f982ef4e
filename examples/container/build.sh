# Installs refinedet beside the torch of /opt/refinedet, and removes what detection does not need: build.sh [PACKAGE ...]
set -eu

# Of the declared dependencies those that `refinedet detect` imports (tests/build/test_container.py). pycocotools,
# tensorboard and matplotlib, which only evaluation and training need, are left out.
pip install numpy opencv-python-headless safetensors tqdm "$@"
REFINEDET_OPENCV=opencv-python-headless pip wheel --no-build-isolation --no-deps --wheel-dir /wheels /source
pip install --no-deps /wheels/refinedet-*.whl

# Headers, tools and static libraries serve compilers, triton serves torch.compile. No library of torch's or CUDA's names
# cusolverMg or the second nvrtc (CUDA 13.0). The wheels of pytorch.org carry tests.
pip uninstall --yes triton pybind11 ninja
cd /opt/refinedet/lib/python3*/site-packages
rm -rf torch/include torch/share torch/test nvidia/*/include nvidia/*/nvvm nvidia/*/bin
rm -rf nvidia/*/lib/libcusolverMg.* nvidia/*/lib/libnvrtc*.alt.* pip pip-* /opt/refinedet/bin/pip*
find torch/bin -type f ! -name torch_shm_manager -delete
find . -name '*.a' -delete

# Shows that nothing is missing. And Python keeps the byte code of what it imports here, hence of no more than detection
# needs; the user of the image cannot write it.
refinedet detect bccd /source/examples/bccd/BloodImage_00031.jpg --out /tmp/found
