"""The data of a recipe: splits joined and found, with the recipe's own settings."""

import numpy as np
import pytest
from support.synthetic import FixedNetwork, make_voc

from refinedet.errors import DataError
from refinedet.evaluation.evaluate import evaluate
from refinedet.inference.detector import Detector
from refinedet.training.datasets import open_test_data, open_training_data
from refinedet.training.read import parse_recipe


def recipe(root, **data):
    content = {"model": {"backbone": "squeezenet"}, "train": {"steps": 1}, "data": {"root": str(root), **data}}
    return parse_recipe(content, name="test", source="test.toml")


def test_joined_splits_are_measured_in_vocs_pixels(tmp_path):
    """As VOC 07+12 are: a corner of 1 is the first pixel, so 1 is taken off on both sides."""
    for number, folder in enumerate(("VOC2007", "VOC2012")):
        root = make_voc(tmp_path / folder, {"trainval": 1}, seed=number, objects=1)
        (xml,) = (root / "Annotations").glob("*.xml")
        corners = "<xmin>33</xmin><ymin>25</ymin><xmax>64</xmax><ymax>48</ymax>"
        xml.write_text(f"<annotation><object><name>disc</name><bndbox>{corners}</bndbox></object></annotation>")
    splits = ["VOC2007/trainval", "VOC2012/trainval"]
    dataset = open_training_data(recipe(tmp_path, train_split=splits, classes=["disc", "square"]))
    found = np.array((32, 24, 63, 47)) / (128, 96, 128, 96)  # 0-based, of the image of 128 x 96
    detector = Detector(FixedNetwork([found], [1], [0.9]))
    assert evaluate(detector, dataset, iou_threshold=0.99, progress=False).mean_ap == 1.0


def test_names_outside_the_data_folder_need_the_recipes_word(tmp_path):
    root = make_voc(tmp_path / "voc", {"train": 1, "test": 1})
    (root / "JPEGImages" / "000000.jpg").rename(tmp_path / "outside.jpg")
    xml = root / "Annotations" / "000000.xml"
    xml.write_text(xml.read_text().replace("000000.jpg", "../../outside.jpg"))
    for split in ("train", "test"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("000000\n")
    refusing, allowing = recipe(root), recipe(root, allow_outside=True)
    with pytest.raises(DataError, match=r"<filename> '\.\./\.\./outside\.jpg' leaves the data folder"):
        open_training_data(refusing)
    with pytest.raises(DataError, match=r"<filename> '\.\./\.\./outside\.jpg' leaves the data folder"):
        open_test_data(refusing, ("disc", "square"))
    assert len(open_training_data(allowing)) == len(open_test_data(allowing, ("disc", "square"))) == 1


def test_a_class_misspelt_in_the_recipe_is_not_blamed_on_the_annotation(tmp_path):
    make_voc(tmp_path, {"train": 2})
    message = r"class 'disc' is not among .* \(dics, square\); did you mean 'dics'\? .* \(data.classes in a recipe\)"
    with pytest.raises(DataError, match=message):
        open_training_data(recipe(tmp_path, classes=["dics", "square"]))
