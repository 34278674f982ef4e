"""What is publicly known of VOC and COCO: how much every split holds, and where its files come from.

Images, objects and difficult objects of VOC are those of its development kits (whose tables leave the difficult ones
out) and of the tables made of them; COCO's are those of its own counts. Where no public number was found, as for
COCO's crowds, there is None and nothing is checked. Numbers agree with each other: VOC2007's objects that are not
difficult are the 24,640 of its home page, COCO 2014's annotations those of 2017.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A split as it was published; None: it has none, or nobody said how many, and then it is not checked."""

    images: int | None
    source: tuple[str, ...]  # addresses of its files
    objects: int | None = None  # difficult ones included
    difficult: int | None = None  # VOC's
    used: int | None = None  # images with at least one object
    annotated: bool = True


class Join(NamedTuple):
    """Splits that are trained on together."""

    parts: tuple[str, ...]
    images: int
    test: str
    recipes: tuple[str, ...]


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_VOC2007 = f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar"
_VOC2007_TEST = f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar"
_VOC2012 = f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar"
_VOC2012_TEST = "http://host.robots.ox.ac.uk:8080 (after registration)"

VOC_SPLITS = {
    "VOC2007/train": Published(2501, (_VOC2007,), 7844, 7844 - 6301),
    "VOC2007/val": Published(2510, (_VOC2007,), 7818, 7818 - 6307),
    "VOC2007/trainval": Published(5011, (_VOC2007,), 15662, 15662 - 12608),
    "VOC2007/test": Published(4952, (_VOC2007_TEST,), 14976, 14976 - 12032),
    "VOC2012/train": Published(5717, (_VOC2012,), 15774, 15774 - 13609),
    "VOC2012/val": Published(5823, (_VOC2012,), 15787, 15787 - 13841),
    "VOC2012/trainval": Published(11540, (_VOC2012,), 31561, 31561 - 27450),
    "VOC2012/test": Published(10991, (_VOC2012_TEST,), annotated=False),
}
VOC_JOINS = {
    "07+12": Join(
        ("VOC2007/trainval", "VOC2012/trainval"), 16551, "VOC2007/test", ("vgg16_voc07_320", "vgg16_voc07_512")
    ),
    "07++12": Join(
        ("VOC2007/trainval", "VOC2007/test", "VOC2012/trainval"),
        21503,
        "VOC2012/test",
        ("vgg16_voc12_320", "vgg16_voc12_512"),
    ),
}

_COCO = "http://images.cocodataset.org"
_COCO2014 = f"{_COCO}/annotations/annotations_trainval2014.zip"
_COCO2017 = f"{_COCO}/annotations/annotations_trainval2017.zip"
_COCO2017_TEST = f"{_COCO}/annotations/image_info_test2017.zip"

COCO_SPLITS = {
    "val2017": Published(5000, (f"{_COCO}/zips/val2017.zip", _COCO2017), 36781, used=4952),
    "train2017": Published(118287, (f"{_COCO}/zips/train2017.zip", _COCO2017), 860001, used=117266),
    "val2014": Published(40504, (f"{_COCO}/zips/val2014.zip", _COCO2014), 291875, used=40137),
    "train2014": Published(82783, (f"{_COCO}/zips/train2014.zip", _COCO2014), 604907, used=82081),
    "test-dev2017": Published(20288, (f"{_COCO}/zips/test2017.zip", _COCO2017_TEST), annotated=False),
    "test2017": Published(40670, (f"{_COCO}/zips/test2017.zip", _COCO2017_TEST), annotated=False),
}
# Made of them: val2017 is minival2014, train2017 is trainval35k, which is train2014 and val2014 without minival2014.
TRAINVAL35K = Join(
    ("trainval35k",),
    118287,
    "minival2014",
    ("vgg16_coco_320", "vgg16_coco_512", "resnet101_coco_320", "resnet101_coco_512"),
)
VALMINUSMINIVAL_IMAGES = 35504
