#!/usr/bin/env bash
# 2026-11-28, pycocotools 2.0.11, numpy 2.4.6.
#
# Two images with one object each; in one of them it is found, in the other something else is, both with score 0.9. The
# same twice, but for the numbers of the two images, which are exchanged.
# Likely guess: an image's id is a name, so renumbering images (to merge files, or because their ids were texts) leaves AP
# as it is.
# Seen: AP 0.505 with one numbering, 0.252 with the other. Detections of equal score stand in the order of the images'
# ids, which COCOeval sorts, and that order decides where in the precision-recall curve the false one comes. Scores
# rounded to a few digits, as result files often have them, make such ties common. Who renumbers has to keep the order.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: pycocotools==2.0.11 numpy==2.4.6
cat > measure.py <<'PYTHON'
import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def measure(found, missed):
    """AP, where the object of image `found` is found and that of image `missed` is not."""
    box, elsewhere = [0, 0, 100, 100], [500, 500, 100, 100]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": found}, {"id": missed}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": box, "area": 10000, "iscrowd": 0} for n in (found, missed)
        ],
    }
    results = [
        {"image_id": found, "category_id": 1, "bbox": box, "score": 0.9},
        {"image_id": missed, "category_id": 1, "bbox": elsewhere, "score": 0.9},
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return f"{evaluation.stats[0]:.3f}"


print("found in image 1, missed in image 2: AP", measure(1, 2))
print("found in image 2, missed in image 1: AP", measure(2, 1))
PYTHON
venv/bin/python measure.py | tee output
diff output - <<'EXPECTED'
found in image 1, missed in image 2: AP 0.505
found in image 2, missed in image 1: AP 0.252
EXPECTED
