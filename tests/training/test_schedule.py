"""Learning-rate schedule against Caffe's multistep policy and a hand-computed warm-up."""

import pytest

from refinedet.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1e-3), (79_999, 1e-3), (80_000, 1e-4), (99_999, 1e-4), (100_000, 1e-5), (119_999, 1e-5)]
)
def test_official_voc07_schedule_drops_at_the_stepvalue(step, expected):
    assert learning_rate(step, base=1e-3, milestones=(80_000, 100_000), gamma=0.1) == pytest.approx(expected, rel=1e-12)


def test_fine_tune_gamma():
    assert learning_rate(80_000, base=5e-5, milestones=(80_000,), gamma=0.2) == pytest.approx(1e-5, rel=1e-12)


def test_constant_without_milestones():
    assert {learning_rate(step, base=0.02) for step in (0, 1, 10**9)} == {0.02}


def test_warmup_grows_linearly_and_ends_at_the_base_rate():
    rates = [learning_rate(step, base=1.0, warmup_steps=4, warmup_factor=0.2) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rel=1e-12)


def test_warmup_and_milestone_multiply():
    assert learning_rate(1, base=1.0, milestones=(1,), gamma=0.5, warmup_steps=2) == pytest.approx(0.25, rel=1e-12)
