"""The tests of mine, on a GPU."""

import pytest
from support.gpu import on_gpu, require_gpu
from test_mine import (  # noqa: F401  these run here too, with the fixture `mine` of this file
    MineOp,
    test_brute_force,
    test_equals_the_reference,
    test_fewer_eligible_than_wanted,
    test_ignored_anchors_are_neither_selected_nor_counted,
    test_images_do_not_mix,
    test_iou_is_exclusive_and_objectness_inclusive,
    test_loss_of_logits_is_capped,
    test_mining_the_losses_is_mining_the_logits,
    test_nan_loss_is_never_selected,
    test_no_positive_no_negative,
    test_nothing_to_mine,
    test_number_of_negatives_is_rounded_down,
    test_official_negatives,
    test_the_hardest_three_per_positive,
    test_ties_go_to_the_lowest_anchor,
)

from refinedet import ops

require_gpu()


@pytest.fixture(scope="module")
def mine() -> MineOp:
    return on_gpu(ops.mine)
