"""How good detections are: PASCAL VOC average precision, COCO average precision, reports and plots."""
