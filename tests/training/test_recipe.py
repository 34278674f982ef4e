"""Recipes: every shipped one says what the paper's solver says, and every mistake is named."""

import pytest

import refinedet
from refinedet.data import VOC_CLASSES
from refinedet.errors import RecipeError
from refinedet.training.read import parse_recipe, read_recipe, with_settings
from refinedet.training.recipe import differences
from refinedet.training.sources import parse_setting, recipe_names

MINIMAL = {"model": {"backbone": "squeezenet"}, "train": {"steps": 5}}


def parse(**sections):
    content = {name: dict(values) for name, values in MINIMAL.items()}
    for name, values in sections.items():
        content.setdefault(name, {}).update(values)
    return parse_recipe(content, name="test", source="test.toml")


# name: (steps, batch, lr, gamma, milestones), spec 9.1
SOLVERS = {
    "vgg16_voc07": (120_000, 32, 1e-3, 0.1, (80_000, 100_000)),
    "vgg16_voc12": (240_000, 32, 1e-3, 0.1, (160_000, 200_000)),
    "vgg16_coco": (400_000, 32, 1e-3, 0.1, (280_000, 360_000)),
    "resnet101_coco_320": (400_000, 32, 1e-3, 0.1, (280_000, 360_000)),
    "resnet101_coco_512": (540_000, 20, 1e-3, 0.1, (400_000, 480_000)),
    "vgg16_voc07_finetune": (120_000, 32, 5e-5, 0.2, (80_000,)),
    "vgg16_voc12_finetune": (160_000, 32, 5e-5, 0.2, (120_000,)),
}
PAPER_RECIPES = sorted(
    {f"{data}_{size}" for data in ("vgg16_voc07", "vgg16_voc12", "vgg16_coco", "resnet101_coco") for size in (320, 512)}
    | {f"{data}_{size}_finetune" for data in ("vgg16_voc07", "vgg16_voc12") for size in (320, 512)}
)


def test_shipped_recipes_are_those_of_the_paper_and_the_demo():
    assert recipe_names() == sorted([*PAPER_RECIPES, "bccd"])


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_paper_recipe_has_the_official_solver(name):
    recipe = read_recipe(name)
    t = recipe.train
    solver = SOLVERS.get(name) or SOLVERS[name.replace("_320", "").replace("_512", "")]
    assert (t.steps, t.batch_size, t.lr, t.gamma, t.milestones) == solver
    assert (t.momentum, t.weight_decay, t.warmup_steps, t.clip_norm, t.ema_decay) == (0.9, 5e-4, 0, 0.0, 0.0)
    assert t.normalize_groups == 4
    assert not t.amp
    assert recipe.model.input_size == ((320, 320) if "320" in name else (512, 512))
    assert recipe.model.full_preset.objectness_threshold == 0.01
    assert recipe.data.use_difficult == ("voc" in name)
    assert recipe.data.classes == (VOC_CLASSES if "voc" in name else None)


@pytest.mark.parametrize("name", [*PAPER_RECIPES, "bccd"])
def test_toml_round_trip(name, tmp_path):
    recipe = read_recipe(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(recipe.to_toml())
    assert read_recipe(path) == recipe
    assert parse_recipe(recipe.to_dict(), name=name, source="dict") == recipe


def test_ablations_of_table_2_are_settings():
    preset = parse(model={"objectness_threshold": 0.0, "cascade": False, "tcb": False}).model.full_preset
    assert (preset.objectness_threshold, preset.cascade, preset.tcb) == (0.0, False, False)


def test_the_recipe_of_the_shipped_model_has_its_classes_and_weights_for_caffes_input():
    recipe = read_recipe("bccd")
    assert recipe.model.weights_input == "caffe"
    assert recipe.data.classes == refinedet.load("bccd").config.classes


def test_values_are_converted_to_the_types_of_the_fields():
    recipe = parse(
        model={"size": [128, 64]},
        train={"lr": 1, "milestones": [1, 2]},
        data={"train_split": ["a/x", "b/y"]},
        augment={"contrast": [1, 2]},
    )
    assert recipe.model.input_size == (128, 64)
    assert (recipe.train.lr, type(recipe.train.lr)) == (1.0, float)
    assert recipe.train.milestones == (1, 2)
    assert recipe.data.train_splits == ("a/x", "b/y")
    assert recipe.augment.contrast == (1.0, 2.0)
    assert parse().data.train_splits == ("train",)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"learning_rat": 1.0}}, r"train\.learning_rat is unknown; .*valid are .*lr"),
        ({"train": {"momentun": 0.9}}, r"train\.momentun is unknown; did you mean 'momentum'"),
        ({"trian": {}}, r"section trian is unknown; did you mean 'train'"),
        ({"augment": {"mirror": True}}, r"augment\.mirror is unknown; did you mean 'mirror_probability'"),
        ({"train": {"steps": 1.5}}, r"train\.steps is 1\.5; it must be a whole number"),
        ({"train": {"steps": True}}, r"train\.steps is True; it must be a whole number"),
        ({"train": {"amp": 1}}, r"train\.amp is 1; it must be true or false"),
        ({"train": {"lr": "fast"}}, r"train\.lr is 'fast'; it must be a number"),
        ({"train": {"lr": 0.0}}, r"train\.lr is 0\.0; it must be > 0"),
        ({"train": {"lr": float("nan")}}, r"train\.lr is nan; it must be > 0 and finite"),
        ({"train": {"lr": float("inf")}}, r"train\.lr is inf; it must be > 0 and finite"),
        ({"train": {"steps": 0}}, r"train\.steps is 0; it must be >= 1"),
        ({"train": {"momentum": 1.0}}, r"train\.momentum is 1\.0; it must be >= 0 and < 1"),
        ({"train": {"milestones": [4, 2]}}, r"train\.milestones is \[4, 2\]; give them in ascending order"),
        ({"train": {"milestones": 4}}, r"train\.milestones is 4; it must be a list of items, each a whole number"),
        ({"train": {"batch_size": 6, "normalize_groups": 4}}, r"train\.batch_size is 6; give a multiple of .*4"),
        ({"model": {"size": 300}}, r"model\.size is 300; sides must be multiples of 64"),
        ({"model": {"size": [320, 64, 64]}}, r"model\.size is .* a whole number or a list of 2 items"),
        ({"model": {"weights_input": "bgr"}}, r"model\.weights_input is 'bgr'; choose one of torchvision, caffe"),
        ({"model": {"preset": "caffe"}}, r"model\.preset is 'caffe'; choose one of official, paper"),
        ({"model": {"objectness_threshold": 1.5}}, r"model\.objectness_threshold is 1\.5; it must be >= 0 and <= 1"),
        ({"data": {"format": "yolo"}}, r"data\.format is 'yolo'; choose one of voc, coco"),
        ({"data": {"train_split": []}}, r"data\.train_split is empty"),
        ({"data": {"classes": ["a", 1]}}, r"data\.classes is \['a', 1\]; it must be a list of items, each a text"),
        ({"augment": {"max_expand": 0.5}}, r"test\.toml: augmentation: max_expand is 0\.5"),
        ({"augment": {"contrast": [1.0]}}, r"augment\.contrast is \[1\.0\]; it must be a list of 2 items"),
    ],
)
def test_mistakes_are_named(sections, message):
    with pytest.raises(RecipeError, match=rf"^test\.toml: .*{message}" if "test" not in message else message):
        parse(**sections)


def test_section_of_the_wrong_kind():
    with pytest.raises(RecipeError, match=r"train is 5; it must be a section, \[train\]"):
        parse_recipe({"model": {"backbone": "vgg16"}, "train": 5}, name="x", source="x.toml")


@pytest.mark.parametrize(("section", "key"), [("model", "backbone"), ("train", "steps")])
def test_missing_required_setting(section, key):
    content = {name: values for name, values in MINIMAL.items() if name != section}
    with pytest.raises(RecipeError, match=rf"{section}\.{key} is missing"):
        parse_recipe(content, name="x", source="x.toml")


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(RecipeError, match=r"no recipe 'vgg16_voc7_320'; did you mean 'vgg16_voc07_320'\?.*bccd"):
        read_recipe("vgg16_voc7_320")


def test_file_that_is_not_toml(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[train\nsteps = 5")
    with pytest.raises(RecipeError, match=r"broken\.toml cannot be read as TOML: .*line 1"):
        read_recipe(path)


def test_binary_file_as_recipe(tmp_path):
    path = tmp_path / "image.toml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(RecipeError, match=r"image\.toml cannot be read as TOML"):
        read_recipe(path)


def test_differences_name_setting_and_values():
    assert differences(parse(), parse(train={"lr": 0.5}, data={"root": "x"})) == {
        "train.lr": "0.001, now 0.5",
        "data.root": "None, now 'x'",
    }
