#!/usr/bin/env bash
# 2026-11-29, globox 2.9.0, pycocotools 2.0.11, numpy 2.4.6.
#
# One image with one object, written by globox as COCO's annotations; the detection is the object itself. The same, but
# for the annotation's id, which is made 1.
# Likely guess: ids are names, any number will do, and a perfect detection gives AP 1.
# Seen: AP 0 for the file as globox writes it. It numbers images, categories and annotations from 0, and COCOeval keeps
# the id of the annotation that a detection matched, where 0 stands for none. Ids of annotations have to count from 1.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: globox==2.9.0 pycocotools==2.0.11 numpy==2.4.6
cat > measure.py <<'PYTHON'
import contextlib
import io
import json

import globox
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

box = globox.BoundingBox(label="dog", xmin=10, ymin=10, xmax=60, ymax=60)
image = globox.Annotation("a.jpg", image_size=(100, 100), boxes=[box])
document = json.loads(json.dumps(globox.AnnotationSet([image]).to_coco(auto_ids=True)))
for written in (document["annotations"][0]["id"], 1):
    document["annotations"][0]["id"] = written
    truth = COCO()
    truth.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([{"image_id": 0, "category_id": 0, "bbox": [10, 10, 50, 50], "score": 0.9}])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    print(f"annotation of id {written}: AP {evaluation.stats[0]:.3f}")
PYTHON
venv/bin/python measure.py > output
cat output
diff output - <<'EXPECTED'
annotation of id 0: AP 0.000
annotation of id 1: AP 1.000
EXPECTED
