"""VOC data sets: sound ones, and each way in which one can be damaged."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from refinedet.data import VOC_CLASSES, COCODataset, VOCDataset, open_dataset
from refinedet.errors import DataError

WIDTH, HEIGHT = 64, 48


def xml_object(name: str, box: tuple, difficult: object = 0) -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def xml(*objects: str, width: object = WIDTH, height: object = HEIGHT, filename: str = "wrong.jpg") -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def tree(root: Path, annotations: dict[str, str], split: str = "train", suffix: str = ".png") -> Path:
    """A VOC data set with one split of the given annotations, each with a grey image."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id, text in annotations.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(text)
        cv2.imwrite(str(root / "JPEGImages" / f"{image_id}{suffix}"), np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in annotations))
    return root


CAT = xml_object("cat", (10, 12, 32, 24))
DOG = xml_object("dog", (1, 1, 64, 48), difficult=1)


def open_quietly(root: Path, **options) -> VOCDataset:
    """Open the split train; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return VOCDataset(root, "train", **options)


def test_a_sound_data_set(tmp_path):
    dataset = open_quietly(tree(tmp_path, {"b": xml(DOG, CAT), "a": xml()}))
    assert dataset.classes == ("cat", "dog")
    assert len(dataset) == 2
    assert dataset.warnings == []
    sample = dataset[0]  # in the order of the split
    assert (sample.image_id, Path(sample.path).name) == ("b", "b.png")
    assert (sample.image.shape, sample.image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    # Coordinates as they stand, without VOC's offset of one (spec 7.1).
    expected = np.float32([[1 / 64, 1 / 48, 1, 1], [10 / 64, 0.25, 0.5, 0.5]])
    np.testing.assert_allclose(sample.boxes, expected, rtol=1e-6)
    assert (sample.boxes.dtype, sample.labels.dtype, sample.difficult.dtype) == (np.float32, np.int64, np.bool_)
    assert sample.labels.tolist() == [2, 1]
    assert sample.difficult.tolist() == [True, False]
    empty = dataset[1]
    assert (empty.boxes.shape, empty.labels.shape, empty.difficult.shape) == ((0, 4), (0,), (0,))


def test_difficult_may_be_absent(tmp_path):
    text = xml(CAT).replace("<difficult>0</difficult>", "")
    assert open_quietly(tree(tmp_path, {"a": text}))[0].difficult.tolist() == [False]


def test_classes_come_from_every_annotation_so_that_splits_agree(tmp_path):
    tree(tmp_path, {"a": xml(DOG)}, split="test")
    tree(tmp_path, {"b": xml(CAT), "c": xml(xml_object("ant", (1, 1, 5, 5)))})
    assert VOCDataset(tmp_path, "train").classes == VOCDataset(tmp_path, "test").classes == ("ant", "cat", "dog")


def test_the_twenty_classes_of_voc_keep_their_order(tmp_path):
    objects = [xml_object(name, (1, 1, 9, 9)) for name in sorted(VOC_CLASSES, reverse=True)]
    assert open_quietly(tree(tmp_path, {"a": xml(*objects)})).classes == VOC_CLASSES
    assert VOC_CLASSES[0] == "aeroplane"
    assert VOC_CLASSES[19] == "tvmonitor"


def test_given_classes_fix_the_labels(tmp_path):
    dataset = open_quietly(tree(tmp_path, {"a": xml(DOG, CAT)}), classes=["dog", "emu", "cat"])
    assert dataset.classes == ("dog", "emu", "cat")
    assert dataset[0].labels.tolist() == [1, 3]


def test_unknown_class_names_the_near_one(tmp_path):
    root = tree(tmp_path, {"a": xml(xml_object("ct", (1, 1, 9, 9)))})
    message = r"a\.xml: class 'ct' is not among the 2 known classes \(cat, dog\); did you mean 'cat'\? correct"
    with pytest.raises(DataError, match=message):
        VOCDataset(root, "train", classes=["cat", "dog"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "the list of classes is empty"),
        (["cat", "dog", "cat"], "class 'cat' is named twice"),
        ("cat", r"classes is the text 'cat'; give a list of names, such as \['cat'\]"),
    ],
)
def test_unusable_lists_of_classes(tmp_path, classes, message):
    with pytest.raises(DataError, match=message):
        VOCDataset(tree(tmp_path, {"a": xml(CAT)}), "train", classes=classes)


BAD_BOXES = [
    ((5, 5, 5, 9), "boxes of no area, dropped: 1", None),
    ((9, 5, 5, 9), "inverted boxes, dropped: 1", None),
    (("nan", 5, 9, 9), "boxes with a coordinate that is not finite, dropped: 1", None),
    ((5, 5, "inf", 9), "boxes with a coordinate that is not finite, dropped: 1", None),
    ((65, 5, 80, 9), "boxes wholly outside the image, dropped: 1", None),
    ((-9, 5, 0, 9), "boxes wholly outside the image, dropped: 1", None),
    ((-16, 12, 80, 96), "boxes partly outside the image, clipped: 1", (0, 0.25, 1, 1)),
]


@pytest.mark.parametrize(("box", "finding", "left"), BAD_BOXES)
def test_bad_boxes_are_repaired_or_dropped_with_a_warning(tmp_path, box, finding, left):
    root = tree(tmp_path, {"good": xml(CAT), "bad": xml(CAT, xml_object("dog", box), CAT)})
    with pytest.warns(UserWarning, match=finding) as caught:
        dataset = VOCDataset(root, "train")
    assert len(caught) == 1
    assert str(root) in str(caught[0].message)
    assert dataset.warnings == [f"{finding} (bad.xml)"]
    sample = dataset[1]
    assert sample.labels.tolist() == ([1, 1] if left is None else [1, 2, 1])
    assert len(sample.boxes) == len(sample.difficult) == len(sample.labels)
    if left is not None:
        np.testing.assert_allclose(sample.boxes[1], left)


def test_one_warning_counts_everything_and_names_the_first_files(tmp_path):
    flat, inverted = xml_object("cat", (5, 5, 5, 5)), xml_object("cat", (9, 9, 5, 5))
    annotations = {f"f{i}": xml(CAT, flat, flat) for i in range(5)} | {"z": xml(CAT, inverted)}
    with pytest.warns(UserWarning, match="dropped") as caught:
        dataset = VOCDataset(tree(tmp_path, annotations), "train")
    assert len(caught) == 1
    assert dataset.warnings == [
        "boxes of no area, dropped: 10 (f0.xml, f1.xml, f2.xml and 2 more files)",
        "inverted boxes, dropped: 1 (z.xml)",
    ]


def test_the_image_wins_over_the_annotated_size(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT, width=128, height=96)})
    with pytest.warns(UserWarning, match=r"annotated image size differs from the image's, which is used: 1 \(a.xml\)"):
        dataset = VOCDataset(root, "train")
    np.testing.assert_allclose(dataset[0].boxes, [[10 / 64, 0.25, 0.5, 0.5]])


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": "nan", "height": "inf"}])
def test_an_annotated_size_that_says_nothing_is_no_matter(tmp_path, size):
    assert len(open_quietly(tree(tmp_path, {"a": xml(CAT, **size)}))) == 1


def test_an_image_listed_twice_is_used_once(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT), "b": xml(CAT)})
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n\na\n")
    with pytest.warns(UserWarning, match=r"listed twice in the split, used once: 1 \(train.txt\)"):
        dataset = VOCDataset(root, "train")
    assert [dataset[i].image_id for i in range(len(dataset))] == ["a", "b"]


def test_lists_of_one_class_and_ids_with_spaces(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT), "an image 1": xml(CAT)})
    (root / "ImageSets" / "Main" / "train.txt").write_text("a  -1\nan image 1\n")
    assert [record.image_id for record in open_quietly(root).records] == ["a", "an image 1"]


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".PNG"])
def test_any_suffix_is_found(tmp_path, suffix):
    assert Path(open_quietly(tree(tmp_path, {"a.b": xml(CAT)}, suffix=suffix))[0].path).name == f"a.b{suffix}"


def test_the_filename_decides_where_the_id_does_not(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT, filename="a.png"), "b": xml(CAT, filename="other.png")})
    (root / "JPEGImages" / "b.png").rename(root / "JPEGImages" / "other.png")
    cv2.imwrite(str(root / "JPEGImages" / "a.bmp"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert [record.path.name for record in open_quietly(root).records] == ["a.png", "other.png"]


def test_another_image_folder(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "JPEGImages").rename(root / "PNGImages")
    assert open_quietly(root)[0].image.shape == (HEIGHT, WIDTH, 3)
    (root / "MoreImages").mkdir()
    with pytest.raises(DataError, match=r"no folder JPEGImages \(folders named \*Images: MoreImages, PNGImages\)"):
        VOCDataset(root, "train")


def test_absent_image(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT), "b": xml(CAT)})
    (root / "JPEGImages" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.xml: its image b\.\* is not in .*JPEGImages; restore it or remove the id"):
        VOCDataset(root, "train")


def test_absent_annotation(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nghost\n")
    with pytest.raises(DataError, match=r"ghost\.xml: no such annotation file; restore it or remove the id"):
        VOCDataset(root, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", r"a\.xml: malformed XML \(no element found: line 1, column 20\)"),
        ("", r"a\.xml: malformed XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"a\.xml: malformed XML"),
        (xml(CAT.replace("<name>cat</name>", "")), r"a\.xml: an <object> has no <name>; add it"),
        (xml(CAT.replace("<xmin>10</xmin>", "")), r"a\.xml: <object> has no <bndbox/xmin>; add it"),
        (xml(CAT.replace("bndbox", "polygon")), r"a\.xml: <object> has no <bndbox/xmin>; add it"),
        (xml(CAT.replace("<xmin>10<", "<xmin>ten<")), r"a\.xml: <bndbox/xmin> is 'ten', not a number; correct it"),
        (xml(xml_object("cat", (1, 1, 9, 9), "maybe")), r"a\.xml: <difficult> is 'maybe', not a number"),
        (xml(CAT).replace(f"<height>{HEIGHT}</height>", ""), r"a\.xml: <annotation> has no <size/height>; add it"),
    ],
)
def test_damaged_annotations(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        VOCDataset(tree(tmp_path, {"a": text}), "train", classes=["cat"])


def test_empty_image_file_is_found_when_opening(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "JPEGImages" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png: the image file is empty"):
        VOCDataset(root, "train")


def test_unknown_split_lists_those_that_exist(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"tests\.txt: no such split; the splits there: train, val"):
        VOCDataset(root, "tests")


def test_empty_split(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"train\.txt: the split is empty; list one image id per line"):
        VOCDataset(root, "train")


def test_split_that_is_not_text(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match=r"train\.txt: not a text file in UTF-8"):
        VOCDataset(root, "train")


def test_no_object_anywhere(tmp_path):
    with pytest.raises(DataError, match=r"no annotated object in any XML file.*pass classes"):
        VOCDataset(tree(tmp_path, {"a": xml()}), "train")


def test_open_dataset_guesses_the_format(tmp_path):
    assert isinstance(open_dataset(tree(tmp_path, {"a": xml(CAT)}), "train"), VOCDataset)


def test_open_dataset_without_a_data_set(tmp_path):
    with pytest.raises(DataError, match=r"neither a VOC data set .* nor a COCO one"):
        open_dataset(tmp_path, "train")
    with pytest.raises(DataError, match="nowhere: no such data folder; check the path"):
        open_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="format 'yolo' is unknown; give 'voc' or 'coco'"):
        open_dataset(tmp_path, "train", format="yolo")


def test_open_dataset_obeys_the_format(tmp_path):
    with pytest.raises(DataError, match=r"instances_train\.json: no such split; the splits there: none"):
        open_dataset(tree(tmp_path, {"a": xml(CAT)}), "train", format="coco")
    assert COCODataset is not VOCDataset
