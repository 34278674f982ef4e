"""COCO data sets: sound ones, and each way in which one can be damaged."""

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from refinedet.data import COCO_CLASSES, COCODataset, open_dataset
from refinedet.errors import DataError

WIDTH, HEIGHT = 64, 48


def content() -> dict:
    """Three images, the last without annotations; two categories whose ids are neither contiguous nor sorted."""
    return {
        "images": [
            {"id": 70, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 5, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
            {"id": 6, "file_name": "c.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 18, "bbox": [16, 12, 32, 24], "iscrowd": 0},
            {"id": 2, "image_id": 70, "category_id": 3, "bbox": [0, 0, 64, 48], "iscrowd": 1},
            {"id": 3, "image_id": 5, "category_id": 3, "bbox": [1.5, 2.25, 10.5, 20.25]},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }


def tree(root: Path, data: object, *, file: str = "annotations/instances_train.json", images: str = "train") -> Path:
    """A COCO data set; ``data`` is written as JSON, or as it is where it is text."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(data if isinstance(data, str) else json.dumps(data))
    (root / images).mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "c.png"):
        cv2.imwrite(str(root / images / name), np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    return root


def open_quietly(root: Path, **options) -> COCODataset:
    """Open the split train; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return COCODataset(root, "train", **options)


def test_a_sound_data_set(tmp_path):
    dataset = open_quietly(tree(tmp_path, content()))
    assert dataset.classes == ("dog", "car")  # the file's order (spec 10.5)
    assert dataset.category_ids == {1: 18, 2: 3}
    assert dataset.annotation_file == tmp_path / "annotations" / "instances_train.json"
    assert dataset.warnings == []
    assert [record.image_id for record in dataset.records] == [70, 5, 6]  # as the file has them
    sample = dataset[1]
    assert (sample.image.shape, Path(sample.path).name) == ((HEIGHT, WIDTH, 3), "b.png")
    expected = [[0.25, 0.25, 0.75, 0.75], [1.5 / 64, 2.25 / 48, 12 / 64, 22.5 / 48]]
    np.testing.assert_allclose(sample.boxes, expected, rtol=1e-6)
    assert (sample.boxes.dtype, sample.labels.dtype, sample.difficult.dtype) == (np.float32, np.int64, np.bool_)
    assert sample.labels.tolist() == [1, 2]
    assert sample.difficult.tolist() == [False, False]


def test_crowd_is_difficult(tmp_path):
    sample = open_quietly(tree(tmp_path, content()))[0]
    assert sample.labels.tolist() == [2]
    assert sample.difficult.tolist() == [True]


def test_images_without_annotations_stay(tmp_path):
    sample = open_quietly(tree(tmp_path, content()))[2]
    assert sample.image_id == 6
    assert (sample.boxes.shape, sample.labels.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/train.json", "images"),
        ("instances_train.json", "."),
        ("train/train.json", "train"),
    ],
)
def test_layouts(tmp_path, file, images):
    dataset = open_quietly(tree(tmp_path, content(), file=file, images=images))
    assert dataset[0].image.shape == (HEIGHT, WIDTH, 3)


def test_open_dataset_guesses_the_format(tmp_path):
    assert isinstance(open_dataset(tree(tmp_path, content()), "train"), COCODataset)


def test_given_classes_fix_the_labels(tmp_path):
    dataset = open_quietly(tree(tmp_path, content()), classes=["emu", "car", "dog"])
    assert dataset.classes == ("emu", "car", "dog")
    assert dataset.category_ids == {2: 3, 3: 18}
    assert dataset[1].labels.tolist() == [3, 2]


def test_a_class_that_was_not_given(tmp_path):
    message = r"class 'car' is not among the 2 known classes \(dog, cars\); did you mean 'cars'\?"
    with pytest.raises(DataError, match=message):
        COCODataset(tree(tmp_path, content()), "train", classes=["dog", "cars"])


@pytest.mark.parametrize(
    ("box", "finding", "left"),
    [
        ([5, 5, 0, 9], "boxes of no area, dropped: 1", None),
        ([5, 5, -3, 9], "inverted boxes, dropped: 1", None),
        ([float("nan"), 5, 3, 9], "boxes with a coordinate that is not finite, dropped: 1", None),
        ([64, 5, 3, 9], "boxes wholly outside the image, dropped: 1", None),
        ([32, 24, 64, 48], "boxes partly outside the image, clipped: 1", (0.5, 0.5, 1, 1)),
    ],
)
def test_bad_boxes_are_repaired_or_dropped_with_a_warning(tmp_path, box, finding, left):
    data = content()
    data["annotations"][1]["bbox"] = box
    with pytest.warns(UserWarning, match=finding) as caught:
        dataset = COCODataset(tree(tmp_path, data), "train")
    assert len(caught) == 1
    assert dataset.warnings == [f"{finding} (a.png)"]
    np.testing.assert_allclose(dataset[0].boxes, np.reshape([] if left is None else left, (-1, 4)))


def test_a_rounding_error_beyond_the_edge_is_no_finding(tmp_path):
    data = content()
    data["annotations"][1]["bbox"] = [0, 0, 64.0000001, 48]
    assert open_quietly(tree(tmp_path, data))[0].boxes.tolist() == [[0, 0, 1, 1]]


def test_the_image_wins_over_the_annotated_size(tmp_path):
    data = content()
    data["images"][1]["width"] = 2 * WIDTH
    with pytest.warns(UserWarning, match=r"annotated image size differs .*: 1 \(b.png\)"):
        dataset = COCODataset(tree(tmp_path, data), "train")
    np.testing.assert_allclose(dataset[1].boxes[0], [0.25, 0.25, 0.75, 0.75])


def test_an_annotated_size_that_is_turned_names_exif(tmp_path):
    data = content()
    data["images"][1].update(width=HEIGHT, height=WIDTH)
    with pytest.warns(UserWarning, match=r"turned by 90 degrees.* EXIF .*: 1 \(b.png\)"):
        COCODataset(tree(tmp_path, data), "train")


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": "?", "height": []}, {"height": 7}])
def test_an_annotated_size_that_says_nothing_is_no_matter(tmp_path, size):
    data = content()
    data["images"][0] = {"id": 70, "file_name": "a.png", **size}
    assert len(open_quietly(tree(tmp_path, data))) == 3


def test_fields_that_nothing_depends_on_may_be_absent_or_odd(tmp_path):
    data = content()
    for annotation in data["annotations"]:
        annotation.update(id=1, segmentation="?", area=None, iscrowd=None)  # the ids are not told apart by anyone
    data["images"][0].update(license=[], coco_url=None)
    data["categories"][0].update(supercategory=7)
    assert len(open_quietly(tree(tmp_path, data))[1].labels) == 2


HUGE = int("9" * 400)


@pytest.mark.parametrize("ids", [(1, "b", "1"), (2**63, 2**64, -(2**63)), (HUGE, HUGE + 1, 0), (1.0, 2, "1.0")])
def test_ids_are_numbers_or_texts_of_any_size(tmp_path, ids):
    data = content()
    for image, id_ in zip(data["images"], ids, strict=True):
        image["id"] = id_
    for annotation, number in zip(data["annotations"], (1, 0, 1), strict=True):
        annotation["image_id"] = ids[number]
    dataset = open_quietly(tree(tmp_path, data))
    assert [record.image_id for record in dataset.records] == list(ids)
    assert [type(record.image_id) for record in dataset.records] == [str if isinstance(i, str) else int for i in ids]
    assert [len(record.labels) for record in dataset.records] == [1, 2, 0]


@pytest.mark.parametrize("ids", [("x", 1), (2**70, "3"), (3.0, 18)])
def test_ids_of_categories_likewise(tmp_path, ids):
    data = content()
    for annotation in data["annotations"]:
        annotation["category_id"] = {18: ids[0], 3: ids[1]}[annotation["category_id"]]
    data["categories"] = [{"id": id_, "name": name} for id_, name in zip(ids, ("dog", "car"), strict=True)]
    dataset = open_quietly(tree(tmp_path, data))
    assert dataset.category_ids == {1: ids[0], 2: ids[1]}
    assert dataset[1].labels.tolist() == [1, 2]


@pytest.mark.parametrize("box", [[HUGE, 5, 3, 9], [5, 5, HUGE, 9], [-HUGE, 5, HUGE, 9]])
def test_boxes_of_400_digits_are_dropped(tmp_path, box):
    data = content()
    data["annotations"][1]["bbox"] = box
    with pytest.warns(UserWarning, match=r"boxes with a coordinate that is not finite, dropped: 1 \(a.png\)"):
        COCODataset(tree(tmp_path, data), "train")


@pytest.mark.parametrize(("area", "kept"), [(100, 100), (0, 0), (None, None), (-9, None), (1e300, None)])
def test_area_of_the_outline_where_it_is_possible(tmp_path, area, kept):
    data = content()
    data["annotations"][1]["area"] = area
    np.testing.assert_array_equal(
        open_quietly(tree(tmp_path, data)).records[0].areas, [np.nan if kept is None else kept]
    )


@pytest.mark.parametrize("name", ["sub/a.png", "sub\\a.png", ".\\sub\\a.png", "../train/sub/a.png"])
def test_file_names_with_folders(tmp_path, name):
    data = content()
    data["images"][0]["file_name"] = name
    root = tree(tmp_path, data)
    (root / "train" / "sub").mkdir()
    (root / "train" / "a.png").rename(root / "train" / "sub" / "a.png")
    assert open_quietly(root)[0].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "spelling", ["../../outside.png", "..\\..\\outside.png", "sub/../../../outside.png", "absolute"]
)
def test_a_file_name_stays_in_the_data_folder(tmp_path, number, spelling):
    data = content()
    name = str(tmp_path / "outside.png") if spelling == "absolute" else spelling
    data["images"][number]["file_name"] = name
    root = tree(tmp_path / "coco", data)
    (root / "train" / "sub").mkdir()
    (root / "train" / "a.png").rename(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"instances_train.json: file_name '.*outside.png' leaves the data folder"):
        open_dataset(root, "train")
    if number == 1:
        (root / "train" / "a.png").symlink_to(tmp_path / "outside.png")  # a link is the user's own
    assert open_dataset(root, "train", allow_outside=True)[number].image.shape == (HEIGHT, WIDTH, 3)


def roboflow(root: Path, *splits: str) -> Path:
    """The tree that Roboflow exports: annotations beside the images of each split."""
    for split in splits:
        tree(root, content(), file=f"{split}/_annotations.coco.json", images=split)
    return root


@pytest.mark.parametrize(
    ("split", "folder"), [("train", "train"), ("valid", "valid"), ("val", "valid"), ("test", "test")]
)
def test_roboflow(tmp_path, split, folder):
    dataset = open_dataset(roboflow(tmp_path, "train", "valid", "test"), split)
    assert isinstance(dataset, COCODataset)
    assert dataset.annotation_file == tmp_path / folder / "_annotations.coco.json"
    assert [record.path.parent.name for record in dataset.records] == [folder] * 3
    assert dataset[1].labels.tolist() == [1, 2]


def test_splits_of_every_layout_are_listed(tmp_path):
    roboflow(tmp_path, "train", "valid", ".hidden")
    tree(tmp_path, content(), file="night/night.json")
    tree(tmp_path, content(), file="day/instances_day.json")
    tree(tmp_path, content(), file="old.json")
    tree(tmp_path, content(), file="annotations/instances_new.json")
    tree(tmp_path, content(), file="annotations/._instances_new.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no such split; the splits there: day, new, night, old, train, valid$"):
        open_dataset(tmp_path, "test")


@pytest.mark.parametrize(
    "hidden", ["annotations/._instances_train.json", "__MACOSX/_annotations.coco.json", "._x.json"]
)
def test_hidden_files_are_no_annotations(tmp_path, hidden):
    tree(tmp_path, content(), file=hidden)
    with pytest.raises(DataError, match="neither a VOC data set"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("field", [{"area": "9"}, {"area": float("nan")}, {"area": HUGE}, {"area": []},
                                   {"iscrowd": "no"}, {"iscrowd": "0"}, {"iscrowd": float("nan")}])  # fmt: skip
def test_fields_that_only_the_metric_reads_are_checked_too(tmp_path, field):
    data = content()
    data["annotations"][1].update(field)
    with pytest.raises(DataError, match=rf"annotation 2 has {next(iter(field))} .*; give a number"):
        COCODataset(tree(tmp_path, data), "train")


def changed(where: str, index: int, **values) -> dict:
    """The sound content with one entry changed; None removes a key."""
    data = content()
    data[where][index] = {key: v for key, v in (data[where][index] | values).items() if v is not None}
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"images": [', r"instances_train\.json: malformed JSON: Expecting value: line 1 column 13"),
        ("", r"instances_train\.json: malformed JSON"),
        ("[]", r"has no list 'images'; a COCO file has images, annotations and categories"),
        ({"images": [], "annotations": []}, r"has no list 'categories'"),
        ({**content(), "images": [], "annotations": []}, r"the list of images is empty"),
        ({**content(), "categories": []}, r"the list of categories is empty"),
        ({**content(), "annotations": [7]}, r"the list 'annotations' has an entry that is not an object"),
        (changed("images", 0, id=5), r"two images share an id"),
        (changed("images", 0, id=None), r"image .* has no 'id'; add it"),
        (changed("images", 0, id=[1]), r"image \[1\] has id \[1\]; give a whole number"),
        (changed("images", 0, id=True), r"image True has id True; give a whole number or a text"),
        (changed("images", 0, id=1.5), r"image 1.5 has id 1.5; give a whole number or a text"),
        (changed("images", 0, id=float("nan")), r"image nan has id nan; give a whole number or a text"),
        (changed("images", 0, id=5.0), r"two images share an id"),
        (changed("annotations", 0, image_id="5"), r"annotation 1 names image id '5', which the file lacks"),
        (changed("annotations", 0, category_id="18"), r"annotation 1 names category id '18'; .* 18 \(dog\), 3 \(car\)"),
        (changed("annotations", 0, category_id=False), r"annotation 1 has category_id False; give a whole number or a"),
        (changed("categories", 0, name=""), r"category 18 has name ''; give a text"),
        (changed("categories", 0, name=["dog"]), r"category 18 has name \['dog'\]; give a text"),
        (changed("images", 0, file_name=7), r"image 70 has file_name 7; give a text"),
        (changed("images", 0, file_name=""), r"image 70 has file_name ''; give a text"),
        (changed("images", 0, file_name="x" * 300), r"its image x+ is in none of"),
        (changed("images", 1, file_name="x" * 300), r"1 of its 3 images are not in .*\(x+\)"),
        (changed("images", 1, file_name="b.png\0"), r"1 of its 3 images are not in .*\(b\.png.\)"),
        (changed("images", 1, file_name="\ud800.png"), r"malformed JSON: '.ud800.png' holds half of a surrogate pair"),
        ("[" * 10_000 + "]" * 10_000, r"malformed JSON: nested too deeply"),
        ('{"images": [' + "9" * 5000 + "]}", r"malformed JSON: a number has too many digits"),
        (changed("annotations", 0, bbox=["1", "2", "3", "4"]), r"annotation 1 has bbox \['1', '2', '3', '4'\]; give"),
        (changed("annotations", 0, bbox=[True, 2, 3, 4]), r"annotation 1 has bbox \[True, 2, 3, 4\]; give"),
        (changed("annotations", 0, bbox=[1, 2, 3, None]), r"annotation 1 has bbox \[1, 2, 3, None\]; give"),
        (changed("images", 0, file_name=None), r"image 70 has no 'file_name'; add it"),
        (changed("images", 0, file_name="ghost.png"), r"its image ghost\.png is in none of .*; restore it"),
        (changed("images", 1, file_name="ghost.png"), r"1 of its 3 images are not in .*train \(ghost\.png\)"),
        (changed("categories", 0, name="car"), r"two categories share an id or a name"),
        (changed("categories", 0, id=3), r"two categories share an id or a name"),
        (changed("annotations", 0, image_id=404), r"annotation 1 names image id 404, which the file lacks"),
        (changed("annotations", 0, image_id=None), r"annotation 1 has no 'image_id'; add it"),
        (changed("annotations", 0, category_id=90), r"annotation 1 names category id 90; .* are 18 \(dog\), 3 \(car\)"),
        (changed("annotations", 0, bbox=None), r"annotation 1 has no 'bbox'; add it"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotation 1 has bbox \[1, 2, 3\]; give \[x, y, width, height\]"),
        (changed("annotations", 0, bbox="1234"), r"annotation 1 has bbox '1234'"),
    ],
)
def test_damaged_annotations(tmp_path, data, message):
    with pytest.raises(DataError, match=message) as caught:
        COCODataset(tree(tmp_path, data), "train")
    assert "instances_train.json" in str(caught.value)


def test_bytes_that_are_not_text(tmp_path):
    root = tree(tmp_path, content())
    (root / "annotations" / "instances_train.json").write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(DataError, match="malformed JSON"):
        COCODataset(root, "train")


def test_empty_image_file_is_found_when_opening(tmp_path):
    root = tree(tmp_path, content())
    (root / "train" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.png: the image file is empty"):
        COCODataset(root, "train")


def test_unknown_split_lists_those_that_exist(tmp_path):
    root = tree(tmp_path, content())
    tree(root, content(), file="annotations/instances_val.json", images="val")
    with pytest.raises(DataError, match=r"instances_test\.json: no such split; the splits there: train, val"):
        COCODataset(root, "test")


def test_the_eighty_classes_of_coco():
    assert len(set(COCO_CLASSES)) == 80
    assert (COCO_CLASSES[0], COCO_CLASSES[61 - 1], COCO_CLASSES[79]) == ("person", "dining table", "toothbrush")
