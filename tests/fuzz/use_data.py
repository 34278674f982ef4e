"""What a user does with a data set that could be read: go through its images, and measure a model on it."""

from dataclasses import replace

import cv2
import torch
from support.synthetic import FixedNetwork

from refinedet.data import DetectionDataset
from refinedet.evaluation.evaluate import evaluate
from refinedet.inference.detector import Detector


def use(dataset: DetectionDataset) -> None:
    """Load every sample, and measure by COCO's metric, which reads more than VOC's. By turns, as the number of objects
    falls, the model finds objects of the first class or none at all."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network = FixedNetwork([[0.1, 0.1, 0.5, 0.6]], [1], [0.9], size=(64, 64))
    network.config = replace(network.config, classes=dataset.classes)
    objects = sum(len(record.labels) for record in dataset.records)
    threshold = 1.0 if objects % 2 else 0.5
    result = evaluate(Detector(network), dataset, metric="coco", score_threshold=threshold, progress=False)
    print(dataset.class_table(), result.table(), result.to_json(), *result.coco_results())
