"""The fit of the cost model: constants that made the measurements are found again."""

from dataclasses import replace

import numpy as np
import pytest

from refinedet.profiling import cost
from refinedet.profiling.calibration import (
    FITTED,
    Measurement,
    describe_device,
    find_device,
    fit,
    typical_error,
)

H100 = cost.DEVICES[-1]
CALLS = [
    (f"{name}, {net.name}, {batch}", operator(net, batch))
    for name, operator in cost.OPERATORS.items()
    for net in cost.NETWORKS
    for batch in (1, 32)
]


def measured_on(device: cost.Device, noise: float = 0) -> list[Measurement]:
    rng = np.random.default_rng(0)
    return [Measurement(case, call, call.predicted(device) * np.exp(noise * rng.normal())) for case, call in CALLS]


@pytest.mark.parametrize("factors", [(0.5, 0.6, 0.5), (1.3, 2.0, 0.7), (0.8, 0.3, 1.4)])
def test_known_constants_are_found_again(factors: tuple[float, ...]) -> None:
    changes = {name: getattr(H100, name) * factor for name, factor in zip(FITTED, factors, strict=True)}
    truth = replace(H100, **changes)
    measured = measured_on(truth)
    fitted = fit(H100, measured)
    for name in FITTED:
        assert getattr(fitted, name) == pytest.approx(getattr(truth, name), rel=0.01), name
    assert typical_error(fitted, measured) < 1.001 < typical_error(H100, measured)


def test_noise_averages_out() -> None:
    truth = replace(H100, clock=1.2, launch=1.1)
    fitted = fit(H100, measured_on(truth, noise=0.05))
    assert fitted.clock == pytest.approx(1.2, rel=0.1)
    assert fitted.launch == pytest.approx(1.1, rel=0.2)


def test_what_nothing_depends_on_stays() -> None:
    """With launches alone in the measurements, neither clock nor issue can be told."""
    call = cost.Cost(cost.Work(1, 0), (cost.Kernel("memset"),))
    fitted = fit(H100, [Measurement(str(i), call, 4.0) for i in range(3)])
    assert fitted.launch == pytest.approx(4.0, rel=0.01)
    assert (fitted.clock, fitted.issue) == pytest.approx((H100.clock, H100.issue))


def test_too_few_measurements() -> None:
    with pytest.raises(ValueError, match="2 measurements; 3 constants"):
        fit(H100, measured_on(H100)[:2])


def test_typical_error_is_a_factor() -> None:
    case, call = CALLS[0]
    predicted = call.predicted(H100)
    twice, half = Measurement(case, call, predicted / 2), Measurement(case, call, predicted * 2)
    assert typical_error(H100, [twice, half]) == pytest.approx(2)


def test_devices() -> None:
    assert find_device("NVIDIA H100 80GB HBM3", 132) is H100
    assert find_device("NVIDIA H100 PCIe", 114) is None
    assert describe_device("NVIDIA H100 80GB HBM3", 132, "9.0", 1.98, 3000) is H100
    other = describe_device("NVIDIA H200", 132, "9.0", 1.98, 4300)
    assert (other.multiprocessors, other.cores, other.clock, other.bandwidth) == (132, 128, 1.98, 4300)
    assert describe_device("Tesla T4", 40, "7.5", 1.59, 300).cores == 64
