"""The tests of refine, on a GPU."""

import pytest
from support.gpu import on_gpu, require_gpu
from test_refine import (  # noqa: F401  these run here too, with the fixture `refine` of this file
    RefineOp,
    test_both_stages_of_the_published_vector,
    test_equals_reference,
    test_literal,
)

from refinedet import ops

require_gpu()


@pytest.fixture(scope="module")
def refine() -> RefineOp:
    return on_gpu(ops.refine)
