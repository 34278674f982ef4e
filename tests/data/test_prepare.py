"""VOC and COCO on disk beside what was published: made-up trees of the real layout, whole and short."""

import csv
import json
import re
import shutil
import tracemalloc
from pathlib import Path

import cv2
import pytest
from support.paths import ROOT
from support.synthetic import scene

from refinedet.commands import main as cli
from refinedet.data import open_dataset, read_image
from refinedet.data.prepare_coco import prepare_coco
from refinedet.data.prepare_voc import prepare_voc
from refinedet.data.published import (
    COCO_SPLITS,
    TRAINVAL35K,
    VALMINUSMINIVAL_IMAGES,
    VOC_JOINS,
    VOC_SPLITS,
    Published,
)
from refinedet.errors import DataError
from refinedet.training.datasets import open_test_data, open_training_data
from refinedet.training.read import read_recipe
from refinedet.training.sources import setting

with (ROOT / "docs" / "specification" / "coco_voc_labels.csv").open() as table:
    CATEGORIES = [{"id": int(row[1]), "name": row[2]} for row in list(csv.reader(table))[2:]]
# Images of the made-up splits, objects, difficult ones.
VOC = {
    "VOC2007/train": (2, 4, 1),
    "VOC2007/val": (1, 2, 0),
    "VOC2007/trainval": (3, 6, 1),
    "VOC2007/test": (2, 4, 0),
    "VOC2012/train": (1, 2, 0),
    "VOC2012/val": (2, 4, 0),
    "VOC2012/trainval": (3, 6, 0),
    "VOC2012/test": (2, None, None),
}
COCO = {
    "val2017": (2, 2, 1),
    "train2017": (5, 8, 4),
    "val2014": (4, 6, 3),
    "train2014": (3, 4, 2),
    "test-dev2017": (1, None, None),
    "test2017": (2, None, None),
}


def expected(published: dict[str, Published], numbers: dict[str, tuple]) -> dict[str, Published]:
    """The published table with the numbers of a made-up tree."""
    return {
        name: split._replace(
            images=numbers[name][0],
            objects=numbers[name][1],
            **({"difficult": numbers[name][2]} if numbers is VOC else {"used": numbers[name][2]}),
        )
        for name, split in published.items()
    }


VOC_EXPECTED = {
    "splits": expected(VOC_SPLITS, VOC),
    "joins": {name: join._replace(images=sum(VOC[part][0] for part in join.parts)) for name, join in VOC_JOINS.items()},
}
COCO_EXPECTED = {
    "splits": expected(COCO_SPLITS, COCO),
    "trainval35k": TRAINVAL35K._replace(images=5),
    "rest_images": 2,
}


def voc_tree(root: Path) -> Path:
    """VOC2007 and VOC2012 as the four archives unpack into VOCdevkit."""
    ids = {
        "VOC2007/train": ["000005", "000007"],
        "VOC2007/val": ["000009"],
        "VOC2007/test": ["000001", "000002"],
        "VOC2012/train": ["2008_000008"],
        "VOC2012/val": ["2008_000002", "2008_000003"],
        "VOC2012/test": ["2008_000001", "2008_000004"],
    }
    for year in ("VOC2007", "VOC2012"):
        ids[f"{year}/trainval"] = sorted(ids[f"{year}/train"] + ids[f"{year}/val"])
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / year / folder).mkdir(parents=True)
    for name, images in ids.items():
        year, _, split = name.partition("/")
        (root / year / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{image}\n" for image in images))
        for image in images:
            cv2.imwrite(str(root / year / "JPEGImages" / f"{image}.jpg"), scene(int(image[-3:]))[0])
            if name != "VOC2012/test":
                (root / year / "Annotations" / f"{image}.xml").write_text(voc_xml(difficult=image == "000007"))
    # A class's list stands beside those of the splits.
    (root / "VOC2007" / "ImageSets" / "Main" / "dog_train.txt").write_text("000005 -1\n000007  1\n")
    return root


def voc_xml(*, difficult: bool = False, name: str = "dog") -> str:
    objects = "".join(
        f"<object><name>{label}</name><difficult>{int(flag)}</difficult><bndbox><xmin>10</xmin><ymin>12</ymin>"
        "<xmax>60</xmax><ymax>70</ymax></bndbox></object>"
        for label, flag in ((name, difficult), ("person", False))
    )
    return f"<annotation><size><width>128</width><height>96</height></size>{objects}</annotation>"


def coco_tree(root: Path, years: tuple[int, ...] = (2017, 2014), folder: str = "") -> Path:
    """COCO as its archives unpack: of seven images val2017 has 1 and 2, val2014 these and two more; image k has as many
    objects as it has. Outlines are there, as in the real files."""
    members = {
        "val2017": [1, 2],
        "train2017": [3, 4, 5, 6, 7],
        "val2014": [1, 2, 3, 4],
        "train2014": [5, 6, 7],
        "test-dev2017": [8],
        "test2017": [8, 9],
    }
    objects = {1: 0, 2: 2, 3: 1, 4: 3, 5: 0, 6: 3, 7: 1}
    (root / "annotations").mkdir(parents=True)
    for name, ids in members.items():
        if int(name[-4:]) not in years:
            continue
        prefix = f"COCO_{name}_" if name.endswith("2014") else ""
        images = [{"id": i, "file_name": f"{prefix}{i:012d}.jpg", "height": 96, "width": 128} for i in ids]
        place = root / folder / name.replace("test-dev", "test")
        place.mkdir(parents=True, exist_ok=True)
        for image in images:
            cv2.imwrite(str(place / image["file_name"]), scene(image["id"])[0])
        content = {"info": {"year": int(name[-4:])}, "images": images, "categories": CATEGORIES}
        if not name.startswith("test"):
            content["annotations"] = [
                {
                    "id": 100 * i + k,
                    "image_id": i,
                    "category_id": CATEGORIES[10 * k]["id"],
                    "bbox": [5 * k, 4, 40.5, 50.25],
                    "area": 1000.5,
                    "iscrowd": int(i == 4 and k == 0),
                    "segmentation": [[1, 2, 3, 4, 5, 6]],
                }
                for i in ids
                for k in range(objects[i])
            ]
        kind = "image_info" if name.startswith("test") else "instances"
        (root / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(content))
    return root


def states(prepared) -> dict[str, str]:
    return {split.name: split.state for split in prepared.splits}


def split_of(prepared, name):
    return next(split for split in prepared.splits if split.name == name)


def test_published_numbers_agree_with_each_other():
    """A trainval set is its train and val, COCO 2014 is COCO 2017; without the difficult ones VOC2007 has 24,640."""
    for year in ("VOC2007", "VOC2012"):
        for key in ("images", "objects", "difficult"):
            parts = [getattr(VOC_SPLITS[f"{year}/{part}"], key) for part in ("train", "val")]
            assert sum(parts) == getattr(VOC_SPLITS[f"{year}/trainval"], key)
    halves = VOC_SPLITS["VOC2007/trainval"], VOC_SPLITS["VOC2007/test"]
    assert sum(half.images for half in halves) == 9963
    assert sum(half.objects - half.difficult for half in halves) == 24640
    assert VOC_SPLITS["VOC2012/trainval"].objects - VOC_SPLITS["VOC2012/trainval"].difficult == 27450
    for join in VOC_JOINS.values():
        assert sum(VOC_SPLITS[part].images for part in join.parts) == join.images
    for key in ("images", "objects", "used"):
        assert sum(getattr(COCO_SPLITS[name], key) for name in ("train2014", "val2014")) == sum(
            getattr(COCO_SPLITS[name], key) for name in ("train2017", "val2017")
        )
    assert TRAINVAL35K.images == COCO_SPLITS["train2017"].images
    assert COCO_SPLITS["val2014"].images - COCO_SPLITS["val2017"].images == VALMINUSMINIVAL_IMAGES
    assert VALMINUSMINIVAL_IMAGES + COCO_SPLITS["train2014"].images == TRAINVAL35K.images


def test_the_document_has_the_published_numbers():
    text = (ROOT / "docs" / "datasets.md").read_text()
    for split in {**VOC_SPLITS, **COCO_SPLITS}.values():
        for number in (split.images, split.objects, split.difficult, split.used):
            assert number is None or f"{number:,}" in text


@pytest.mark.parametrize("inside", ["", "VOCdevkit"])
def test_a_whole_voc(tmp_path, inside):
    voc_tree(tmp_path / inside)
    prepared = prepare_voc(tmp_path, **VOC_EXPECTED)
    assert prepared.root == tmp_path / inside
    assert set(states(prepared).values()) == {"complete"}
    assert {split.name: (split.images, split.objects, split.difficult) for split in prepared.splits} == VOC
    assert [(join.name, join.images, join.ready) for join in prepared.joins] == [
        ("07+12", 6, True),
        ("07++12", 8, True),
    ]
    assert prepared.sound
    assert prepared.written == []
    assert len(prepared.samples) == 6
    assert all(len(record.boxes) == 2 for record in prepared.samples)


def damage_voc(root: Path) -> None:
    seven, twelve = root / "VOC2007", root / "VOC2012"
    (seven / "JPEGImages" / "000009.jpg").unlink()
    (seven / "JPEGImages" / "000005.jpg").write_bytes(b"")
    (seven / "Annotations" / "000001.xml").write_text("<annotation>")
    (seven / "Annotations" / "000002.xml").write_text(voc_xml(name="unicorn"))
    (twelve / "Annotations" / "2008_000008.xml").unlink()
    (twelve / "Annotations" / "2008_000002.xml").write_text(voc_xml(difficult=True))
    (twelve / "ImageSets" / "Main" / "test.txt").unlink()


def test_a_short_voc_says_what_is_missing_and_where_to_get_it(tmp_path):
    damage_voc(voc_tree(tmp_path))
    prepared = prepare_voc(tmp_path, **VOC_EXPECTED)
    assert not prepared.sound
    assert {name for name, state in states(prepared).items() if state == "missing"} == {"VOC2012/test"}
    assert {state for name, state in states(prepared).items() if name != "VOC2012/test"} == {"short"}
    table = prepared.table()
    for words in (
        "images missing or empty in JPEGImages: 1 (000009)",
        "images missing or empty in JPEGImages: 1 (000005)",
        "annotations that cannot be read: 1 (",
        "annotations with another class than VOC's: 1 (000002)",
        "annotations missing or empty: 1 (2008_000008)",
        "difficult objects: 1, published are 0",
        "objects: 2, published are 4",
        "ImageSets/Main/test.txt is not there",
        "VOC2007/test comes from http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtest_06-Nov-2007.tar",
        "VOC2012/test is missing (ImageSets/Main/test.txt is not there); it comes from http://host.robots.ox.ac.uk:8080",
        "07+12: not ready, it lacks VOC2007/trainval (short), VOC2012/trainval (short)",
    ):
        assert words in table


def test_each_fault_alone_makes_a_split_short(tmp_path):
    """The counts of a list, of objects and of difficult ones are compared one by one."""
    voc_tree(tmp_path)
    for key in ("images", "objects", "difficult"):
        splits = dict(VOC_EXPECTED["splits"])
        published = splits["VOC2007/test"]
        splits["VOC2007/test"] = published._replace(**{key: getattr(published, key) + 1})
        prepared = prepare_voc(tmp_path, splits=splits, joins=VOC_EXPECTED["joins"])
        assert {name for name, state in states(prepared).items() if state != "complete"} == {"VOC2007/test"}
        assert len(split_of(prepared, "VOC2007/test").faults) == 1
        assert [join.ready for join in prepared.joins] == [True, False]


def test_voc2012_test_has_images_and_annotations_of_other_tasks(tmp_path):
    """Its archive unpacks 16,135 images into the folder of trainval; 10,991 are listed for detection."""
    root = voc_tree(tmp_path)
    cv2.imwrite(str(root / "VOC2012" / "JPEGImages" / "2011_009999.jpg"), scene(1)[0])
    (root / "VOC2012" / "Annotations" / "2008_000001.xml").write_text(voc_xml())
    prepared = prepare_voc(root, **VOC_EXPECTED)
    assert states(prepared)["VOC2012/test"] == "complete"
    assert split_of(prepared, "VOC2012/test").objects is None


def test_a_damaged_image_among_the_samples_is_a_fault(tmp_path):
    """Others are not opened, as there are 118,287."""
    root = voc_tree(tmp_path / "voc")
    (root / "VOC2007" / "JPEGImages" / "000007.jpg").write_bytes(b"no image")
    prepared = prepare_voc(root, **VOC_EXPECTED)
    assert "000007.jpg: not an image" in split_of(prepared, "VOC2007/trainval").faults[0]
    assert len(prepared.samples) == 5
    assert [join.ready for join in prepared.joins] == [False, False]
    root = coco_tree(tmp_path / "coco", (2017,))
    (root / "val2017" / f"{2:012d}.jpg").write_bytes(b"no image")
    prepared = prepare_coco(root, **COCO_EXPECTED)
    assert "not an image" in split_of(prepared, "val2017").faults[0]
    assert not prepared.sound


def test_a_sample_that_is_cut_short_behind_its_header_is_a_fault(tmp_path, made_up, capsys):
    root = voc_tree(tmp_path / "voc")
    image = root / "VOC2007" / "JPEGImages" / "000007.jpg"
    image.write_bytes(image.read_bytes()[:800])
    assert cli.main(["prepare", "voc", str(root), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert "000007.jpg: not an image that OpenCV can decode (800 bytes" in document["splits"][2]["faults"][0]
    assert cv2.imread(document["page"]).shape == (640, 1600, 3)  # the other five
    root = coco_tree(tmp_path / "coco", (2017,))
    image = root / "val2017" / f"{2:012d}.jpg"
    image.write_bytes(image.read_bytes()[:800])
    assert cli.main(["prepare", "coco", str(root), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert "800 bytes" in document["splits"][0]["faults"][0]


def test_wrong_folders_for_voc(tmp_path):
    with pytest.raises(DataError, match="no such data folder"):
        prepare_voc(tmp_path / "absent")
    with pytest.raises(DataError, match=r"neither VOC2007 nor VOC2012 is in it; unpack .*VOCtrainval_06-Nov-2007\.tar"):
        prepare_voc(tmp_path)
    voc_tree(tmp_path)
    with pytest.raises(DataError, match="is the folder of one year; give the folder that it lies in"):
        prepare_voc(tmp_path / "VOC2007")
    (tmp_path / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe0\x000\x00")
    with pytest.raises(DataError, match=r"train\.txt: not a text file in UTF-8"):
        prepare_voc(tmp_path)


def boxes_of(dataset) -> dict:
    """By image id what is learned from."""
    return {
        record.image_id: (record.boxes.tolist(), record.labels.tolist(), record.difficult.tolist())
        for record in dataset.records
    }


@pytest.mark.parametrize("folder", ["", "images"])
@pytest.mark.parametrize("years", [(2017,), (2014,), (2017, 2014)])
def test_a_whole_coco(tmp_path, years, folder):
    """Either year gives the same splits; 2014 alone needs the list of minival."""
    root = coco_tree(tmp_path / "coco", years, folder)
    if years == (2014,):
        other = coco_tree(tmp_path / "other", (2017,))
        shutil.copy(other / "annotations" / "instances_val2017.json", root / "annotations")
    prepared = prepare_coco(root, **COCO_EXPECTED)
    found = {name for name, state in states(prepared).items() if state == "complete"}
    assert found == {name for name in COCO if int(name[-4:]) in years}
    assert "short" not in states(prepared).values()
    assert prepared.sound
    (join,) = prepared.joins
    assert (join.name, join.images, join.ready) == ("trainval35k", 5, True)
    names = {"trainval35k", "minival2014", *(("valminusminival2014",) if 2014 in years else ())}
    assert {path.name for path in prepared.written} == {f"instances_{name}.json" for name in names}
    assert all("segmentation" not in path.read_text() for path in prepared.written)

    complete = coco_tree(tmp_path / "whole")
    train, minival = open_dataset(root, "trainval35k"), open_dataset(root, "minival2014")
    assert boxes_of(train) == boxes_of(open_dataset(complete, "train2017"))
    assert boxes_of(minival) == boxes_of(open_dataset(complete, "val2017"))
    assert minival.category_ids == {label: row["id"] for label, row in enumerate(CATEGORIES, 1)}
    if 2014 in years:
        assert sorted(boxes_of(open_dataset(root, "valminusminival2014"))) == [3, 4]

    again = prepare_coco(root, **COCO_EXPECTED)
    assert (again.written, again.kept) == (prepared.written, [])
    assert len(prepared.samples) == (3 if years == (2014,) else 1)
    assert all(len(record.boxes) for record in prepared.samples)


def test_files_that_are_not_ours_are_kept(tmp_path):
    """The lists of minival that people have since 2015 have no folders in their names, and work as they are."""
    root = coco_tree(tmp_path, (2014,))
    content = json.loads((root / "annotations" / "instances_val2014.json").read_text())
    content["images"] = content["images"][:2]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] <= 2]
    file = root / "annotations" / "instances_minival2014.json"
    file.write_text(json.dumps(content))
    prepared = prepare_coco(root, **COCO_EXPECTED)
    assert prepared.sound
    assert prepared.kept == [file]
    assert json.loads(file.read_text()) == content
    assert sorted(boxes_of(open_dataset(root, "minival2014"))) == [1, 2]
    assert sorted(boxes_of(open_dataset(root, "trainval35k"))) == [3, 4, 5, 6, 7]


def test_a_file_of_other_origin_that_lists_other_images_is_not_ready(tmp_path):
    """Such as a list of another data set, or one cut short."""
    root = coco_tree(tmp_path, (2017,))
    file = root / "annotations" / "instances_minival2014.json"
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    content["images"][0]["id"] = 99
    content["annotations"] = []
    file.write_text(json.dumps(content))
    prepared = prepare_coco(root, **COCO_EXPECTED)
    assert prepared.kept == [file]
    assert not prepared.sound
    assert (
        "trainval35k: not ready, it lacks 1 images of minival2014 in annotations/instances_minival2014.json, which "
        "prepare has not made and which lists 1 others; move it away" in prepared.table()
    )
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    file.write_text(json.dumps(content))  # lies in val2014 by its name, where no image is
    prepared = prepare_coco(root, **COCO_EXPECTED)
    assert not prepared.sound
    assert "it lacks images where annotations/instances_minival2014.json, which prepare has not" in prepared.table()
    assert "move it away" in prepared.table()
    file.unlink()
    assert prepare_coco(root, **COCO_EXPECTED).sound


def test_an_empty_folder_beside_that_of_the_images(tmp_path):
    root = coco_tree(tmp_path, (2017,), "images")
    for name in ("train2017", "val2017"):
        (root / name).mkdir()
    assert prepare_coco(root, **COCO_EXPECTED).sound


def test_nan_in_coco_is_one_error(tmp_path):
    root = coco_tree(tmp_path, (2017,))
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["height"] = float("nan")
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"trainval35k\.json cannot be made of train2017: NaN or infinity is in"):
        prepare_coco(root, **COCO_EXPECTED)
    assert not (root / "annotations" / "instances_trainval35k.json").exists()


def test_2014_without_the_list_of_minival(tmp_path):
    root = coco_tree(tmp_path, (2014,))
    prepared = prepare_coco(root, **COCO_EXPECTED)
    assert not prepared.sound
    assert prepared.written == []
    assert (
        "not ready, it lacks train2017 and val2017, or train2014 and val2014 with annotations/instances_val2017.json"
        in (prepared.table())
    )
    other = coco_tree(tmp_path / "other", (2017,))
    file = root / "annotations" / "instances_val2017.json"
    shutil.copy(other / "annotations" / "instances_train2017.json", file)  # images 3 to 7: no minival of val2014
    prepared = prepare_coco(root, **COCO_EXPECTED)
    assert prepared.written == []
    assert "images of minival2014 in val2014" in prepared.table()
    shutil.copy(other / "annotations" / "instances_val2017.json", file)
    assert prepare_coco(root, **COCO_EXPECTED).sound
    file.unlink()  # what was made of it is a list, too
    assert prepare_coco(root, **COCO_EXPECTED).sound


def test_a_short_coco_makes_nothing_of_what_is_short(tmp_path):
    root = coco_tree(tmp_path, (2017,))
    (root / "train2017" / f"{3:012d}.jpg").unlink()
    (root / "train2017" / f"{4:012d}.jpg").write_bytes(b"")
    (root / "annotations" / "image_info_test2017.json").unlink()
    prepared = prepare_coco(root, **COCO_EXPECTED)
    assert not prepared.sound
    assert [path.name for path in prepared.written] == ["instances_minival2014.json"]
    table = prepared.table()
    assert f"images missing or empty: 2 ({3:012d}.jpg, {4:012d}.jpg)" in table
    assert "annotations/image_info_test2017.json is not there" in table
    assert (
        "train2017 comes from http://images.cocodataset.org/zips/train2017.zip and http://images.cocodataset.org/annot"
        in table
    )
    assert "trainval35k: not ready" in table
    assert states(prepared)["train2014"] == "missing"


@pytest.mark.parametrize("key", ["images", "objects", "used"])
def test_each_count_of_coco_is_compared(tmp_path, key):
    splits = dict(COCO_EXPECTED["splits"])
    splits["train2017"] = splits["train2017"]._replace(**{key: 99})
    prepared = prepare_coco(coco_tree(tmp_path, (2017,)), **{**COCO_EXPECTED, "splits": splits})
    assert states(prepared)["train2017"] == "short"
    assert "published are 99" in prepared.table()
    assert split_of(prepared, "train2017").difficult == 1  # crowds are counted, and compared with nothing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "malformed JSON"),
        ('{"images": [], "categories": []}', "has no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "has no 'file_name'"),
        ('{"images": [{"id": [], "file_name": "a"}], "annotations": [], "categories": []}', r"has id \[\]"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 1, "name": "dog"}], "annotations": '
            '[{"image_id": 1, "category_id": 1, "bbox": [1, 2]}]}',
            r"has bbox \[1, 2\]",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "categories": [], '
            '"annotations": []}',
            "two images share an id",
        ),
    ],
)
def test_damaged_files_of_coco_are_one_error(tmp_path, text, message):
    root = coco_tree(tmp_path, (2017,))
    (root / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(DataError, match=rf"instances_train2017\.json: .*{message}"):
        prepare_coco(root, **COCO_EXPECTED)


def test_wrong_folders_for_coco(tmp_path):
    with pytest.raises(DataError, match=r"none of val2017, .* is in it; unpack the images there .*val2014\.zip"):
        prepare_coco(tmp_path)
    with pytest.raises(DataError, match="no such data folder"):
        prepare_coco(tmp_path / "absent")


def test_outlines_are_not_kept_in_memory(tmp_path):
    """They are most of COCO's own files: half a gigabyte of text, several as Python's lists."""
    root = coco_tree(tmp_path, (2017,))
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        row["segmentation"] = [[0.25] * 25_000]
    file.write_text(json.dumps(content))
    size = file.stat().st_size
    del content
    tracemalloc.start()
    prepare_coco(root, **COCO_EXPECTED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 1_000_000
    assert peak < 4 * size


@pytest.fixture
def made_up(monkeypatch):
    """The commands take the numbers of the made-up trees for the published ones."""
    monkeypatch.setitem(prepare_voc.__kwdefaults__, "splits", VOC_EXPECTED["splits"])
    monkeypatch.setitem(prepare_voc.__kwdefaults__, "joins", VOC_EXPECTED["joins"])
    for name, value in COCO_EXPECTED.items():
        monkeypatch.setitem(prepare_coco.__kwdefaults__, name, value)


@pytest.mark.parametrize(
    ("layout", "recipe", "images"),
    [
        ("voc", "vgg16_voc07_320", (6, 2)),
        ("voc", "vgg16_voc12_512", (8, None)),
        ("coco", "vgg16_coco_320", (5, 2)),
        ("coco", "resnet101_coco_512", (5, 2)),
    ],
)
def test_shipped_recipes_find_their_data_after_prepare(tmp_path, made_up, capsys, layout, recipe, images):
    root = voc_tree(tmp_path) if layout == "voc" else coco_tree(tmp_path, (2017,))
    assert cli.main(["prepare", layout, str(root)]) == 0
    assert f"{recipe.rsplit('_', 1)[0]}_320" in capsys.readouterr().out
    opened = read_recipe(recipe, [setting("data.root", str(root), "--data")])
    data = open_training_data(opened)
    assert len(data) == images[0]
    assert len(data.classes) == (20 if layout == "voc" else 80)
    if images[1] is not None:
        assert len(open_test_data(opened, data.classes)) == images[1]


def test_a_page_that_cannot_be_written_costs_nothing_else(tmp_path, made_up, capsys):
    root, results = coco_tree(tmp_path / "coco", (2017,)), tmp_path / "found.json"
    page = tmp_path / "a file" / "page.png"
    page.parent.touch()
    assert cli.main(["prepare", "coco", str(root), "--out", str(page), "--json", str(results)]) == 2
    captured = capsys.readouterr()
    assert "trainval35k: ready" in captured.out
    assert re.search(r"the page of samples cannot be written to '.*page\.png' \(.*\); name another place", captured.err)
    document = json.loads(results.read_text())
    assert document["page"] is None
    assert document["training_sets"][0]["ready"] is True


@pytest.mark.parametrize(("layout", "own"), [("voc", "VOC2007/JPEGImages/000005.jpg"), ("coco", "val2017/{:012d}.jpg")])
def test_the_page_takes_no_place_of_the_datas_files(tmp_path, made_up, capsys, layout, own):
    root = voc_tree(tmp_path) if layout == "voc" else coco_tree(tmp_path, (2017,))
    own = root / own.format(1)
    before = own.read_bytes()
    assert cli.main(["prepare", layout, str(root), "--out", str(own)]) == 2
    assert f"--out {own} is an image of the data, which would be lost; give another place" in capsys.readouterr().err
    assert own.read_bytes() == before
    page = root / "refinedet_samples.jpg"
    for _ in range(2):  # what stands beside the folders of the data is replaced
        assert cli.main(["prepare", layout, str(root)]) == 0
        assert cv2.imread(str(page)) is not None


def test_results_take_no_place_of_annotations(tmp_path, made_up, capsys):
    root = coco_tree(tmp_path / "disk", (2017,))
    own = root / "annotations" / "instances_val2017.json"
    content = json.loads(own.read_text())
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "annotations").symlink_to(root / "annotations")
    reordered = root / "val.json"
    reordered.write_text(json.dumps({key: content[key] for key in ("categories", "annotations", "images", "info")}))
    commands = (
        ["prepare", "coco", str(root)],
        ["evaluate", "bccd", "--data", str(root)],
        ["train", "bccd", "--data", str(root), "--out", str(tmp_path / "run")],
    )
    before = {file: file.read_bytes() for file in (own, reordered)}
    for command in commands:
        for file in (own, reordered, tmp_path / "linked" / "annotations" / own.name):
            assert cli.main([*command, "--json", str(file)]) == 2
            assert f"'{file}' holds annotations, which would be lost" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before
    assert not (tmp_path / "run").exists()
    results = root / "annotations" / "found.json"
    for _ in range(2):  # results are replaced wherever they lie
        assert cli.main(["prepare", "coco", str(root), "--json", str(results)]) == 0


def test_the_command_says_what_it_did(tmp_path, made_up, capsys):
    root = coco_tree(tmp_path / "coco", (2017,))
    page = tmp_path / "page.png"
    assert cli.main(["prepare", "coco", str(root), "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert f"Written: {root / 'annotations' / 'instances_trainval35k.json'}" in shown
    assert f"trainval35k: ready, 5 images, for refinedet train vgg16_coco_320 --data {root}" in shown
    assert f"Samples with their boxes: {page}" in shown
    assert cv2.imread(str(page)).shape == (320, 400, 3)  # one of the images of val2017 has objects
    assert cli.main(["prepare", "coco", str(root), "--out", str(page), "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["page"] == str(page)
    assert document["training_sets"][0]["ready"] is True
    assert document["splits"][1]["images"] == 5
    assert document["splits"][1]["published"] == {"images": 5, "objects": 8, "difficult": None}


def test_the_command_fails_where_something_is_short(tmp_path, made_up, capsys):
    damage_voc(voc_tree(tmp_path))
    assert cli.main(["prepare", "voc", str(tmp_path)]) == 1
    assert "short" in capsys.readouterr().out
    assert cli.main(["prepare", "voc", str(tmp_path / "VOC2007" / "Annotations")]) == 2
    assert "neither VOC2007 nor VOC2012" in capsys.readouterr().err
    assert cli.main(["prepare", "voc", str(tmp_path), "--out", "page.txt"]) == 2
    assert "--out is 'page.txt'; give a file that ends in .jpg, .jpeg, .png" in capsys.readouterr().err


def test_boxes_are_where_the_annotations_say(tmp_path, made_up):
    root = voc_tree(tmp_path)
    assert cli.main(["prepare", "voc", str(root), "--out", str(tmp_path / "page.png")]) == 0
    page = cv2.imread(str(tmp_path / "page.png"))
    assert page.shape == (2 * 320, 4 * 400, 3)
    record = prepare_voc(root, **VOC_EXPECTED).samples[0]
    plain = cv2.resize(read_image(record.path), (400, 300), interpolation=cv2.INTER_AREA)
    changed = (page[:300, :400] != plain).any(axis=2)
    x1, y1, x2, y2 = (record.boxes[0] * (400, 300, 400, 300)).round().astype(int)
    assert changed[y1, x1 : x2 + 1].all()
    assert changed[y2, x1 : x2 + 1].all()
    assert changed[y1 : y2 + 1, x1].all()
    assert changed[y1 : y2 + 1, x2].all()
    assert not changed[:, : x1 - 2].any()
    assert not changed[y2 + 3 :].any()
    page = page[320:, 800:]
    assert (page == 255).all()  # six images leave two places empty
