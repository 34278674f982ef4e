"""Fits the constants of a GPU in the cost model to times that were measured on it.

The model is `refinedet.profiling.cost`; ``make gpu-report ARGS=--calibrate`` measures and fits (docs/profiling.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refinedet.profiling.cost import DEVICES, Cost, Device

# Of `Device`. The clock scales every chain of latencies, which are cycles; the bandwidth is measured by a copy.
FITTED = ("clock", "launch", "issue")
WIDE = 128  # float32 lanes of a multiprocessor
NARROW = {"6.0", "7.0", "7.2", "7.5", "8.0"}  # compute capabilities with half as many

_PRIOR = 1e-3  # weight of a constant's distance from its start: holds what no measurement depends on
_ROUNDS = 100
_STEP = 1e-4  # of a logarithm, for derivatives


@dataclass(frozen=True)
class Measurement:
    """A call whose time is known."""

    case: str
    cost: Cost
    microseconds: float


def find_device(name: str, multiprocessors: int) -> Device | None:
    """The GPU, if the model knows it: by the family in its name and by its multiprocessors."""
    for device in DEVICES:
        if device.name.split(" (")[0].lower() in name.lower() and device.multiprocessors == multiprocessors:
            return device
    return None


def describe_device(name: str, multiprocessors: int, capability: str, clock: float, bandwidth: float) -> Device:
    """`find_device`, or a GPU that the model does not know, of its clock (GHz) and bandwidth (GB/s)."""
    known = find_device(name, multiprocessors)
    cores = WIDE // 2 if capability in NARROW else WIDE
    return known or Device(name, multiprocessors, cores, clock, bandwidth, launch=2.0, issue=2.4)


def fit(start: Device, measured: Sequence[Measurement]) -> Device:
    """``start`` with the constants `FITTED` that bring the predictions nearest to the measurements.

    Least squares of the logarithms of predicted over measured, by Levenberg-Marquardt in the logarithms of the
    constants: a time half and a time twice as long are equally wrong, and no constant becomes negative.
    """
    if len(measured) < len(FITTED):
        raise ValueError(f"there are {len(measured)} measurements; {len(FITTED)} constants need at least as many")
    origin = np.log([getattr(start, name) for name in FITTED])
    times = np.log([each.microseconds for each in measured])

    def errors(constants: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        device = _with(start, constants)
        predicted = np.log([each.cost.predicted(device) for each in measured])
        return np.concatenate([predicted - times, _PRIOR * (constants - origin)])

    constants, damping = origin, 1e-2
    for _ in range(_ROUNDS):
        found = errors(constants)
        slopes = np.stack([(errors(constants + row) - found) / _STEP for row in _STEP * np.eye(len(FITTED))], axis=1)
        normal = slopes.T @ slopes
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ found)
        better = np.sum(errors(constants + step) ** 2) < np.sum(found**2)
        constants, damping = (constants + step, damping / 4) if better else (constants, damping * 4)
    return _with(start, constants)


def _with(device: Device, logarithms: npt.NDArray[np.float64]) -> Device:
    return replace(device, **dict(zip(FITTED, np.exp(logarithms).tolist(), strict=True)))


def typical_error(device: Device, measured: Sequence[Measurement]) -> float:
    """By what factor a prediction is off, as a root mean square of logarithms: 1.2 is 20 % too long or too short."""
    logs = [np.log(each.cost.predicted(device) / each.microseconds) for each in measured]
    return float(np.exp(np.sqrt(np.mean(np.square(logs)))))
