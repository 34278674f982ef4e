"""The tests of match, on a GPU."""

import pytest
from support.gpu import on_gpu, require_gpu
from test_match import (  # noqa: F401  these run here too, with the fixture `match` of this file
    MatchOp,
    test_anchor_at_the_threshold_is_matched,
    test_best_anchor_is_matched_below_the_threshold,
    test_box_that_overlaps_nothing_stays_unmatched,
    test_brute_force,
    test_crowd_equals_the_reference,
    test_equals_the_reference,
    test_images_do_not_mix,
    test_iou_of_a_millionth_is_no_overlap,
    test_nothing_to_match,
    test_official_matches,
    test_order_of_distinct_boxes_does_not_matter,
    test_targets_decode_to_the_matched_boxes,
    test_ties_go_to_the_lowest_anchor_then_to_the_earliest_box,
    test_two_boxes_that_share_a_best_anchor_get_two_anchors,
    test_unit_of_length_does_not_matter,
    test_unusable_boxes_and_anchors_overlap_nothing,
)

from refinedet import ops

require_gpu()


@pytest.fixture(scope="module")
def match() -> MatchOp:
    return on_gpu(ops.match)
