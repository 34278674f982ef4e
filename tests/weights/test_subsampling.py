"""A COCO model as the start of a VOC model."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.runs import tiny_recipe
from support.synthetic import make_voc, tiny_checkpoint, tiny_model

import refinedet
from refinedet.data import COCO_CLASSES, VOC_CLASSES
from refinedet.errors import CheckpointError
from refinedet.training.folder import STATE_FILE
from refinedet.training.read import read_recipe
from refinedet.training.run import train
from refinedet.training.sources import recipe_names
from refinedet.weights.checkpoint import load_training_state, load_weights, read_metadata
from refinedet.weights.subsampling import class_rows, select_classes

# Spec section 9.3, from the official data/VOC0712/coco_voc_map.txt: VOC's classes in order, COCO's labels 1..80.
OFFICIAL = [5, 2, 15, 9, 40, 6, 3, 16, 57, 20, 61, 17, 18, 4, 1, 59, 19, 58, 7, 63]


@pytest.fixture(scope="module")
def coco_checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("coco") / "coco.safetensors", classes=COCO_CLASSES, seed=3)


def test_rows_are_those_of_the_official_map():
    assert class_rows(COCO_CLASSES, VOC_CLASSES) == [0, *OFFICIAL]


def test_rows_by_name():
    assert class_rows(("cat", "dog", "sofa"), ("dog", "cat")) == [0, 2, 1]
    assert class_rows(("cat", "couch"), ("sofa",)) == [0, 2]
    assert class_rows(("cat", "dog"), ("dog", "horse")) is None


def test_every_logit_of_the_voc_model_is_one_of_the_coco_model(coco_checkpoint):
    coco = refinedet.load(coco_checkpoint).network
    voc = tiny_model(classes=VOC_CLASSES, seed=4)
    load_weights(voc, coco_checkpoint)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 200 - 100
    with torch.no_grad():
        expected, found = coco(images), voc(images)
    for name in ("arm_loc", "arm_conf", "odm_loc"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(found.odm_conf, expected.odm_conf[..., [0, *OFFICIAL]], rtol=1e-5, atol=1e-6)
    assert len(found.odm_conf.unique()) > found.odm_conf.numel() // 2  # rows differ


def test_a_checkpoint_without_one_of_the_classes(coco_checkpoint):
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_weights(tiny_model(classes=("cat", "zebu")), coco_checkpoint)
    same = refinedet.load(coco_checkpoint).network.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in select_classes(same, COCO_CLASSES, ("zebu",)).items())


def test_a_checkpoint_whose_classifiers_are_for_other_classes(coco_checkpoint, tmp_path):
    tensors = load_file(coco_checkpoint)
    tensors["odm.conf.0.bias"] = torch.zeros(6)
    header = json.dumps(read_metadata(coco_checkpoint))
    save_file(tensors, tmp_path / "damaged.safetensors", {"refinedet": header})
    with pytest.raises(CheckpointError, match=r"odm\.conf\.0\.bias: file has \(6,\), network needs \(63,\)"):
        load_weights(tiny_model(classes=VOC_CLASSES), tmp_path / "damaged.safetensors")


def test_the_shipped_fine_tuning_recipes_begin_where_the_coco_recipes_end():
    names = [name for name in recipe_names() if name.startswith("vgg16") and name.endswith("_finetune")]
    assert len(names) == 4
    for name in names:
        recipe = read_recipe(name)
        coco = f"vgg16_coco_{recipe.model.size}"
        assert recipe.model.weights == f"runs/{coco}/model.safetensors"
        start = read_recipe(coco).model
        assert (recipe.model.backbone, recipe.model.size) == (start.backbone, start.size)
        assert (recipe.model.preset, start.preset) == ("official", "coco")
        assert class_rows(COCO_CLASSES, recipe.data.classes) == [0, *OFFICIAL]


def test_the_second_stage_of_the_shipped_model_begins_where_the_first_ends():
    first, second = read_recipe("bccd"), read_recipe("bccd_finetune")
    assert second.model == replace(first.model, weights=f"runs/bccd/{STATE_FILE}")
    assert second.data == first.data


def test_training_starts_from_the_selected_classifiers(coco_checkpoint, tmp_path):
    root = make_voc(tmp_path / "voc")
    for path in (root / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("disc", "sofa").replace("square", "tvmonitor"))
    recipe = tiny_recipe(data={"classes": VOC_CLASSES}, train={"steps": 1, "warmup_steps": 1})  # a step at rate 0
    train(recipe, tmp_path / "run", data=root, weights=coco_checkpoint, progress=False)
    trained = load_training_state(tmp_path / "run" / "last.safetensors").model
    expected = select_classes(refinedet.load(coco_checkpoint).network.state_dict(), COCO_CLASSES, VOC_CLASSES)
    names = [name for name in expected if name.startswith("odm.")]
    assert names
    assert all(torch.equal(trained[name], expected[name]) for name in names)


def test_training_starts_from_a_shipped_checkpoint_by_its_name(coco_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("refinedet.weights.checkpoint.CHECKPOINTS", coco_checkpoint.parent)
    root = make_voc(tmp_path / "voc")
    for path in (root / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("disc", "cat").replace("square", "dog"))
    recipe = tiny_recipe(data={"classes": ["dog", "cat"]}, train={"steps": 1, "warmup_steps": 1})  # a step at rate 0
    train(recipe, tmp_path / "run", data=root, weights=coco_checkpoint.stem, progress=False)
    trained = load_training_state(tmp_path / "run" / "last.safetensors").model
    expected = select_classes(refinedet.load(coco_checkpoint).network.state_dict(), COCO_CLASSES, ("dog", "cat"))
    assert torch.equal(trained["odm.conf.0.weight"], expected["odm.conf.0.weight"])
