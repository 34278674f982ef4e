"""The tests of detect, on a GPU."""

import pytest
from support.gpu import on_gpu, require_gpu
from test_detect import (  # noqa: F401  these run here too, with the fixture `detect` of this file
    DetectOp,
    clusters,
    test_equals_reference,
    test_fewer_rows_are_the_first_rows,
    test_images_do_not_meet,
    test_levels_of_any_size,
    test_levels_of_the_network,
    test_literal,
    test_official_layer,
    test_official_layer_with_ties,
    test_order_of_the_anchors_does_not_matter,
    test_the_cascade_moves_twice,
)

from refinedet import ops

require_gpu()


@pytest.fixture(scope="module")
def detect() -> DetectOp:
    return on_gpu(ops.detect)
