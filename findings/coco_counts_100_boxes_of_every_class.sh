#!/usr/bin/env bash
# 2026-11-28, pycocotools 2.0.11, numpy 2.4.6.
#
# One image with 90 objects of each of three classes, all found: 270 boxes, more than the "maxDets=100" that COCOeval
# prints. The same with results cut to the 100 best boxes of the image before they are handed in.
# Likely guess: 100 boxes count of an image, so a result file may be cut there, and more of them are of no use.
# Seen: 100 of every class count. All 270 give AR 1.000; the 100 best of the image give 0.370. Who cuts result files, or
# sets a detector's limit of boxes an image to 100 because the metric "counts no more", loses what would have counted.
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

CLASSES, OBJECTS = 3, 90


def recall(results):
    """AR of "maxDets=100" over all areas."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return f"{evaluation.stats[8]:.3f}"


boxes = [(c + 1, [20 * n, 20 * c, 10, 10]) for c in range(CLASSES) for n in range(OBJECTS)]
truth = COCO()
truth.dataset = {
    "images": [{"id": 1}],
    "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(CLASSES)],
    "annotations": [
        {"id": n, "image_id": 1, "category_id": c, "bbox": box, "area": 100, "iscrowd": 0}
        for n, (c, box) in enumerate(boxes, start=1)
    ],
}
with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
# Scores fall with the number of the object, so that the best of the image are a third of each class.
found = [{"image_id": 1, "category_id": c, "bbox": box, "score": 1 - box[0] / 2000} for c, box in boxes]
best = sorted(found, key=lambda result: -result["score"])[:100]
print(len(found), "boxes handed in: AR", recall(found))
print(len(best), "boxes handed in: AR", recall(best))
PYTHON
venv/bin/python measure.py | tee output
diff output - <<'EXPECTED'
270 boxes handed in: AR 1.000
100 boxes handed in: AR 0.370
EXPECTED
