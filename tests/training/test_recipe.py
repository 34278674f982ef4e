"""Recipes: every shipped one says what the paper's solver says, and every mistake is named."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.runs import PATIENCE

import refinedet
from refinedet.anchors import STRIDES
from refinedet.choices import BACKBONES, DATA_FORMATS, METRICS, SIZE_STEP, WEIGHTS_INPUTS
from refinedet.data import COCO_CLASSES, VOC_CLASSES
from refinedet.errors import RecipeError
from refinedet.models.backbones import _BACKBONES
from refinedet.presets import OFFICIAL
from refinedet.protocols import PROTOCOLS, parse_protocol
from refinedet.training.read import parse_recipe, read_recipe, with_settings
from refinedet.training.recipe import _toml, differences
from refinedet.training.sources import parse_setting, recipe_names

# Every setting of every shipped recipe, written down when each recipe still said all of them.
SHIPPED = json.loads((Path(__file__).parent / "shipped_recipes.json").read_text())
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
SMALL_RECIPES = ["bccd", "bccd_finetune", "deeppcb", "neu_det", "neu_det_small"]


def test_shipped_recipes_are_those_of_the_paper_and_of_small_data():
    assert recipe_names() == sorted([*PAPER_RECIPES, *SMALL_RECIPES])


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


@pytest.mark.parametrize("name", [*PAPER_RECIPES, *SMALL_RECIPES])
def test_shipped_recipe_has_all_its_settings(name):
    assert json.loads(json.dumps(read_recipe(name).to_dict())) == SHIPPED[name]


@pytest.mark.parametrize("name", [*PAPER_RECIPES, *SMALL_RECIPES])
def test_toml_round_trip(name, tmp_path):
    recipe = read_recipe(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(recipe.to_toml())
    assert read_recipe(path) == recipe
    assert parse_recipe(recipe.to_dict(), name=name, source="dict") == recipe


PROTOCOL = {
    "merge": "soft_nms",
    "merge_sigma": 0.5,
    "keep_top_k": "none",
    "scales": [{"size": [64, 128], "turned": True, "flipped": True}, {"min_side_below": 40, "score_threshold": 0.2}],
}


def test_a_recipe_names_a_protocol(tmp_path):
    recipe = parse(evaluate={"protocol": "voc_multiscale_320"})
    assert recipe.evaluate.protocol is PROTOCOLS["voc_multiscale_320"]
    assert recipe.to_dict()["evaluate"]["protocol"] == "voc_multiscale_320"
    assert with_settings(parse(), [parse_setting("evaluate.protocol=coco")]).evaluate.protocol is PROTOCOLS["coco"]
    assert parse().evaluate.protocol is None


@pytest.mark.parametrize("way", ["table", "file beside the recipe"])
def test_a_recipe_has_a_protocol_of_its_own_and_keeps_it_whole(way, tmp_path):
    table = parse(evaluate={"protocol": PROTOCOL}).to_toml()
    protocol, recipe = tmp_path / "mine.toml", tmp_path / "recipe.toml"
    if way == "table":
        recipe.write_text(table)
    else:
        # A protocol's own file has the keys of the table.
        text = "".join(f"{key} = {_toml(value)}\n" for key, value in PROTOCOL.items())
        protocol.write_text(text)
        recipe.write_text(parse().to_toml() + 'protocol = "mine.toml"\n')
    read = read_recipe(recipe)
    assert read.evaluate.protocol == parse_protocol(PROTOCOL, "any")
    protocol.unlink(missing_ok=True)
    recipe.write_text(read.to_toml())
    assert read_recipe(recipe) == read
    assert differences(read, read_recipe(recipe)) == {}
    assert "evaluate.protocol" in differences(read, parse())


def test_a_protocol_beside_the_recipe_is_meant_not_one_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "recipe.toml"
    recipe.write_text(parse().to_toml() + 'protocol = "mine.toml"\n')
    for folder, size in ((tmp_path, 64), (recipe.parent, 128)):
        (folder / "mine.toml").write_text(f"[[scales]]\nsize = {size}\n")
    assert read_recipe(recipe).evaluate.protocol.scales[0].size == (128, 128)
    (recipe.parent / "mine.toml").unlink()
    with pytest.raises(RecipeError, match=r"there is no protocol 'mine\.toml'"):
        read_recipe(recipe)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("vok", r"there is no protocol 'vok'; did you mean 'voc'\?"),
        ("absent.toml", r"there is no protocol 'absent\.toml'; .*give a TOML file or one of: voc, coco, "),
        (320, "protocol is 320; give a name, a TOML file or a Protocol"),
        ({}, "protocol own: it has no scales; give at least one"),
        ({"scales": [{}, {"size": 300}]}, "protocol own: scale 2: size is 300; sides must be multiples of 64"),
        ({"scales": [{}], "merge": "all"}, "protocol own: merge is 'all'; choose one of none, soft_nms, vote, soft"),
        ({"scales": [{"original": False}]}, "protocol own: scale 1: looks at no image; set original or flipped"),
    ],
)
def test_a_mistake_in_a_protocol_is_told_with_its_recipe(protocol, message):
    with pytest.raises(RecipeError, match=rf"^test\.toml: evaluate: {message}"):
        parse(evaluate={"protocol": protocol})


def test_ablations_of_table_2_are_settings():
    preset = parse(model={"objectness_threshold": 0.0, "cascade": False, "tcb": False}).model.full_preset
    assert (preset.objectness_threshold, preset.cascade, preset.tcb) == (0.0, False, False)


def test_a_recipe_sets_the_nms_of_its_model():
    assert parse().model.full_preset == OFFICIAL
    assert parse(model={"nms_iou": 0.4}).model.full_preset == dataclasses.replace(OFFICIAL, nms_iou=0.4)


def test_the_recipe_of_the_shipped_model_has_its_classes_and_weights_for_caffes_input():
    recipe = read_recipe("bccd")
    assert recipe.model.weights_input == "caffe"
    assert recipe.data.classes == refinedet.load("bccd").classes


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
        ({"train": {"lr": float("nan")}}, r"train\.lr is nan; it must be > 0 and <= 1e\+12 and finite"),
        ({"train": {"lr": float("inf")}}, r"train\.lr is inf; it must be > 0 and <= 1e\+12 and finite"),
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
        ({"model": {"nms_iou": -0.1}}, r"model\.nms_iou is -0\.1; it must be >= 0 and <= 1"),
        ({"data": {"format": "yolo"}}, r"data\.format is 'yolo'; choose one of voc, coco"),
        ({"data": {"train_split": []}}, r"data\.train_split is empty"),
        ({"evaluate": {"metric": "map"}}, r"evaluate\.metric is 'map'; choose one of voc, voc07, coco"),
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


# extends -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Writes a recipe file and gives its path."""

    def to(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to


def test_a_recipe_extends_a_shipped_one(write):
    recipe = read_recipe(write("mine.toml", 'extends = "bccd"\n[model]\nsize = 512\n[train]\nlr = 1e-3\n'))
    assert recipe.name == "mine"
    assert differences(read_recipe("bccd"), recipe) == {
        "model.size": "(384, 512), now 512",
        "train.lr": "0.002, now 0.001",
    }


def test_a_chain_of_files_is_merged_key_by_key(write):
    write("base.toml", '[model]\nbackbone = "vgg16"\n[train]\nsteps = 9\nmilestones = [3, 5]\nlr = 0.5\n')
    write("deep/middle.toml", 'extends = "../base.toml"\n[train]\nmilestones = [4]\n[data]\ntest_split = "val"\n')
    recipe = read_recipe(write("leaf.toml", 'extends = "deep/middle.toml"\n[train]\nlr = 0.25\n'))
    assert (recipe.train.steps, recipe.train.milestones, recipe.train.lr) == (9, (4,), 0.25)
    assert (recipe.model.backbone, recipe.data.test_split) == ("vgg16", "val")


def test_a_file_of_a_shipped_name_may_extend_that(write):
    path = write("bccd.toml", 'extends = "bccd"\n[train]\nsteps = 7\n')
    assert differences(read_recipe("bccd"), read_recipe(path)) == {"train.steps": "1700, now 7"}


def test_a_circle_is_named(write):
    write("a.toml", 'extends = "b.toml"')
    write("sub/other.toml", "")
    with pytest.raises(RecipeError, match=r"in a circle: \S*b\.toml extends \S*a\.toml extends \S*b\.toml; take one"):
        read_recipe(write("b.toml", 'extends = "sub/../a.toml"'))
    with pytest.raises(RecipeError, match=r"in a circle: \S*c\.toml extends \S*c\.toml"):
        read_recipe(write("c.toml", 'extends = "c.toml"'))


BASE = '[model]\nbackbone = "vgg16"\n[train]\nsteps = 9\nbatch_size = 8\n'


@pytest.mark.parametrize(
    ("base", "leaf", "message"),
    [
        ('[train]\nlr = "x"', "", r"base\.toml: train\.lr is 'x'"),
        ("[train]\nstep = 1", "", r"base\.toml: train\.step is unknown; did you mean 'steps'"),
        ("[trian]", "", r"base\.toml: section trian is unknown"),
        ("[model", "", r"base\.toml cannot be read as TOML"),
        ("[augment]\nhue = 999", "[augment]\nbrightness = 1", r"base\.toml: augmentation: hue is 999"),
        (BASE, "[augment]\nmax_expand = 0.5", r"leaf\.toml: augmentation: max_expand is 0\.5"),
        (BASE + "milestones = [2, 1]", "[train]\nlr = 1", r"base\.toml: train\.milestones is \[2, 1\]"),
        (BASE, "[train]\nnormalize_groups = 3", r"leaf\.toml: train\.batch_size is 8; give a multiple of .*3"),
        (BASE + "normalize_groups = 4", "[train]\nbatch_size = 6", r"leaf\.toml: train\.batch_size is 6"),
        (BASE, "[model]\nsize = 100", r"leaf\.toml: model\.size is 100"),
        ("", '[model]\nbackbone = "vgg16"', r"leaf\.toml: train\.steps is missing"),
    ],
)
def test_the_file_that_holds_the_bad_value_is_named(write, base, leaf, message):
    write("base.toml", base)
    path = write("leaf.toml", 'extends = "base.toml"\n' + leaf)
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_what_cannot_be_extended(write):
    with pytest.raises(
        RecipeError, match=r"a\.toml: extends is 'bcdd': there is no recipe 'bcdd'; did you mean 'bccd'"
    ):
        read_recipe(write("a.toml", 'extends = "bcdd"'))
    with pytest.raises(RecipeError, match=r"a\.toml: extends is 5; it must be a text"):
        read_recipe(write("a.toml", "extends = 5"))


# classes -------------------------------------------------------------------------------------------------------------


def test_classes_by_a_word():
    assert parse(data={"classes": "voc"}).data.classes == VOC_CLASSES
    assert parse(data={"classes": "coco"}).data.classes == COCO_CLASSES


def test_classes_of_a_file_beside_the_recipe_that_says_so(write):
    write("lists/animals.txt", "cat\n\n guinea pig \nköter\n")
    write("lists/base.toml", '[model]\nbackbone = "vgg16"\n[data]\nclasses = "animals.txt"\n[train]\nsteps = 1\n')
    recipe = read_recipe(write("leaf.toml", 'extends = "lists/base.toml"'))
    assert recipe.data.classes == ("cat", "guinea pig", "köter")
    assert json.loads(recipe.to_toml().split("classes = ")[1].splitlines()[0]) == list(recipe.data.classes)


def test_classes_that_cannot_be_read(write):
    for content, message in ((None, "there is no file .*; give 'voc' or 'coco', a file"), ("\n \n", "is empty")):
        if content is not None:
            write("names.txt", content)
        path = write("a.toml", BASE + '[data]\nclasses = "names.txt"\n')
        with pytest.raises(RecipeError, match=rf"a\.toml: data\.classes is 'names\.txt', .*{message}"):
            read_recipe(path)
    (path.parent / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"names\.txt cannot be read as text"):
        read_recipe(path)


# settings beside the recipe ------------------------------------------------------------------------------------------


def changed(*texts):
    """What ``--set`` with these texts changes in the recipe bccd."""
    return differences(read_recipe("bccd"), read_recipe("bccd", [parse_setting(text) for text in texts]))


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("train.lr=0.5", {"train.lr": "0.002, now 0.5"}),
        (" train.steps = 7 ", {"train.steps": "1700, now 7"}),
        ("train.milestones=[1, 2]", {"train.milestones": "(1150, 1500), now (1, 2)"}),
        ("train.amp=true", {"train.amp": "False, now True"}),
        ("model.size=[128,64]", {"model.size": "(384, 512), now (128, 64)"}),
        ("model.backbone=timm:resnet18", {"model.backbone": "'squeezenet', now 'timm:resnet18'"}),
        ('model.backbone="vgg16"', {"model.backbone": "'squeezenet', now 'vgg16'"}),
        ("data.root=/a folder/x=y#1", {"data.root": "None, now '/a folder/x=y#1'"}),
        ("data.train_split=[VOC2007/a]", None),
        ("evaluate.metric=voc07", {"evaluate.metric": "'voc', now 'voc07'"}),
        ("augment.contrast=[1, 1]", {"augment.contrast": "(0.5, 1.5), now (1.0, 1.0)"}),
    ],
)
def test_set_reads_its_value_as_toml_or_as_a_bare_word(text, change):
    if change is None:
        with pytest.raises(RecipeError, match=r"^--set: data\.train_split is .*cannot be read as TOML"):
            changed(text)
    else:
        assert changed(text) == change


def test_the_last_setting_wins():
    assert changed("train.lr=0.5", "train.steps=7", "train.lr=0.25") == {
        "train.lr": "0.002, now 0.25",
        "train.steps": "1700, now 7",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lr", r"^--set is 'train\.lr'; give SECTION\.KEY=VALUE"),
        ("lr=1", r"^--set is 'lr=1'; give SECTION\.KEY=VALUE"),
        ("train.=1", r"give SECTION\.KEY=VALUE"),
        ("train.lr=", r"^--set: train\.lr is '', which cannot be read as TOML"),
        ("train.milestones=[1,", r"^--set: train\.milestones is '\[1,', which cannot be read as TOML"),
        ("train.lr=1\nsteps = 2", r"^--set: train\.lr is .*; give one value"),
        ("train.lr=fast", r"^--set: train\.lr is 'fast'; it must be a number"),
        ("train.lr=-1", r"^--set: train\.lr is -1\.0; it must be > 0"),
        ("train.learning=1", r"^--set: train\.learning is unknown"),
        ("trian.lr=1", r"^--set: section trian is unknown; did you mean 'train'"),
        ("model.size=100", r"^--set: model\.size is 100; sides must be multiples of 64"),
        ("model.backbone=5", r"^--set: model\.backbone is 5; it must be a text"),
        ("augment.hue=999", r"^--set: augmentation: hue is 999"),
        ("extends.x=1", r"^--set: section extends is unknown"),
    ],
)
def test_mistakes_in_set_name_it(text, message):
    with pytest.raises(RecipeError, match=message):
        changed(text)


def test_set_gives_what_the_file_lacks(write):
    path = write("a.toml", '[model]\nbackbone = "vgg16"')
    assert read_recipe(path, [parse_setting("train.steps=3")]).train.steps == 3


def test_settings_of_a_recipe_that_is_read_already():
    recipe = with_settings(read_recipe("bccd"), [parse_setting("train.lr=0.5")])
    assert differences(read_recipe("bccd"), recipe) == {"train.lr": "0.002, now 0.5"}


def test_the_words_of_the_command_line_are_those_of_the_recipe():
    for key, words in (("evaluate.metric", METRICS), ("model.weights_input", WEIGHTS_INPUTS)):
        for word in words:
            section, name = key.split(".")
            assert getattr(getattr(parse(**{section: {name: word}}), section), name) == word
    assert [parse(data={"format": word}).data.format for word in DATA_FORMATS] == list(DATA_FORMATS)


# values that would fail later, or could not be stored ---------------------------------------------------------------

HUGE = 10**400


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"lr": 1e308}}, r"train\.lr is 1e\+308; it must be > 0 and <= 1e\+12"),
        ({"train": {"lr": HUGE}}, r"train\.lr is 1000.*\.\.\.; whole numbers go up to 2\*\*63 - 1"),
        ({"train": {"lr": -HUGE}}, r"train\.lr is -1000.*\.\.\.; whole numbers go up to"),
        ({"train": {"steps": 2**63}}, r"train\.steps is 9223372036854775808; whole numbers go up to"),
        ({"train": {"steps": 16**5000}}, r"train\.steps is a value of type int, too long to be shown; whole numbers"),
        ({"train": {"milestones": [1, 2**64]}}, r"train\.milestones is 18446744073709551616; whole numbers go up to"),
        ({"train": {"seed": 2**64}}, r"train\.seed is 18446744073709551616; whole numbers go up to"),
        ({"train": {"weight_decay": 1e308}}, r"train\.weight_decay is 1e\+308; it must be >= 0 and <= 1000"),
        ({"train": {"backbone_lr_mult": 1e308}}, r"train\.backbone_lr_mult is 1e\+308; it must be >= 0 and <= 1000"),
        ({"train": {"workers": 10**6}}, r"train\.workers is 1000000; it must be >= 0 and <= 1024"),
        ({"train": {"log_every": 0}}, r"train\.log_every is 0; it must be >= 1"),
        (
            {"train": {"batch_size": 10**9}},
            r"train\.batch_size is 1000000000, whose images of .* 320 take",
        ),
        (
            {"evaluate": {"batch_size": 10**5}},
            r"evaluate\.batch_size is 100000, whose images .* more than 16 GiB",
        ),
        ({"model": {"size": [64000, 64]}}, r"model\.size is 64000; it must be >= 64 and <= 4096"),
        ({"model": {"tcb_channels": 10**9}}, r"model\.tcb_channels is 1000000000; it must be >= 1 and <= 4096"),
        ({"model": {"anchor_ratio": 0.5}}, r"model\.anchor_ratio is 0\.5; it must be >= 1 and <= 16"),
        ({"model": {"backbone": "squezenet"}}, r"model\.backbone is 'squezenet'; did you mean 'squeezenet'\? choose"),
        (
            {"model": {"backbone": "timm:"}},
            r"model\.backbone is 'timm:'; choose vgg16, .*, squeezenet or timm:N",
        ),
        ({"model": {"backbone": "timm:a b"}}, r"model\.backbone is 'timm:a b'; choose"),
        ({"model": {"weights": "a\0b"}}, r"model\.weights is 'a\\x00b', which holds a NUL character"),
        ({"data": {"root": "a\0b"}}, r"data\.root is 'a\\x00b', which holds a NUL character"),
        ({"data": {"classes": ["caf\udce9"]}}, r"data\.classes is 'caf\\udce9', which is not UTF-8"),
        ({"data": {"classes": []}}, r"data\.classes is empty; name at least one class"),
        ({"data": {"classes": ["a", "b", "a"]}}, r"data\.classes has 'a' twice; name each class once"),
        ({"data": {"classes": ["a", " "]}}, r"data\.classes has ' '; a name has letters"),
        ({"data": {"classes": ["a", ""]}}, r"data\.classes has ''; a name has letters"),
        ({"data": {"classes": ["a\nb"]}}, r"data\.classes has 'a\\nb'; a name has letters, and no control characters"),
        ({"data": {"classes": ["Background", "a"]}}, r"data\.classes has 'Background', which is no class to detect"),
        ({"data": {"classes": [str(i) for i in range(70_000)]}}, r"data\.classes has 70000 names; give at most 65535"),
        ({"data": {"train_split": ["train", "VOC2007/"]}}, r"data\.train_split is empty; name at least one split"),
        ({"data": {"test_split": ""}}, r"data\.test_split is empty; name at least one split"),
        ({"train": {"\nx": 1}}, r"train\.'\\nx' is unknown; valid are"),
        ({"train": {"x" * 10**6: 1}}, r"train\.'x+\.\.\. is unknown; valid are"),
        ({"train": {"lr": "x" * 10**6}}, r"train\.lr is 'x+\.\.\.; it must be a number"),
        ({"train": ["x" * 10**6]}, r"train is \['x+\.\.\.; it must be a section"),
        ({"augment": {"crop_trials": 10**9}}, r"augmentation: crop_trials is 1000000000; give 1 to 1000"),
    ],
)
def test_what_would_fail_later_is_told_at_once(sections, message):
    content = {**MINIMAL, **{k: {**MINIMAL.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}}
    with pytest.raises(RecipeError, match=rf"^test\.toml: .*{message}") as caught:
        parse_recipe(content, name="test", source="test.toml")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\x7fb", "😀 bird", 'quo"te\\', "köter", "\u2028".join("ab")])
def test_texts_of_any_kind_survive_toml(name, tmp_path):
    recipe = parse(data={"root": name})
    (tmp_path / "test.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(tmp_path / "test.toml") == recipe


def test_paths_that_are_not_utf8_train_but_are_not_stored(tmp_path):
    """TOML and JSON cannot hold them; a run that goes on gets its folders anew."""
    path = os.fsdecode(b"caf\xe9")
    recipe = parse(data={"root": path}, model={"weights": path})
    assert (recipe.data.root, recipe.model.weights) == (path, path)
    assert with_settings(recipe, [parse_setting("train.lr=1")]).data.root == path
    (tmp_path / "test.toml").write_text(recipe.to_toml(), encoding="utf-8")
    stored = read_recipe(tmp_path / "test.toml")
    assert differences(stored, recipe) == {
        "data.root": r"None, now 'caf\udce9'",
        "model.weights": r"None, now 'caf\udce9'",
    }


# files that are no recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[train]\nsteps = " + "9" * 5000, "a number or a date in it is out of range"),
        ("[train]\nsteps = 0x" + "f" * 5000, r"train\.steps is a value of type int, too long to be shown"),
        ("[train]\nsteps = " + "[" * 5000, "nested too deeply"),
        ("[train]\nsteps = " + "[" * 100 + "]" * 100, r"train\.steps is \[\[.*; it must be a whole number"),
        ("[" + "x" * 5000 + "]", r"section 'x+\.\.\. is unknown"),
        ("[train]\nsteps = 5\n".encode("utf-16"), "byte 0 is not UTF-8; save it as UTF-8 text"),
        (b"[train]\nsteps = 5 # caf\xe9", "byte 23 is not UTF-8; save it as UTF-8 text"),
        (b"\x7fELF\x02\x01\x01\x00", "Invalid statement"),
        ("x = 1\n" * 200_000, "it has more than 1048576 bytes"),
    ],
)
def test_files_that_are_no_recipes(content, message, tmp_path):
    path = tmp_path / "odd.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert "odd.toml" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_recipe_saved_by_windows(write):
    """With a byte order mark and its line ends."""
    text = 'extends = "bccd"\n[train]\nsteps = 7\n'
    path = write("a.toml", "")
    for ends in ("\r\n", "\r"):
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", ends).encode())
        assert read_recipe(path).train.steps == 7


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "x" * 5000, "[1]" + "\n" * 5000])
def test_values_of_any_length_in_set(value):
    with pytest.raises(RecipeError, match=r"^--set: train\.lr is ") as caught:
        changed(f"train.lr={value}")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("frut.toml", r"there is no recipe 'frut\.toml'; did you mean 'fruit\.toml'\?"),
        ("fruit", r"there is no recipe 'fruit'; did you mean 'fruit\.toml'\?"),
        ("recipes/aples.toml", r"there is no recipe 'recipes/aples\.toml'; did you mean 'recipes/apples\.toml'\?"),
        ("bcd.toml", r"there is no recipe 'bcd\.toml'; did you mean 'bccd'\?"),
        ("bccd.toml", r"there is no recipe 'bccd\.toml'; did you mean 'bccd'\?"),
        ("absent/zzz.toml", r"there is no recipe 'absent/zzz\.toml'; give a TOML file or one of: bccd, "),
        ("recipes", r"recipe 'recipes' is a folder; give a TOML file"),
        (".", r"recipe '\.' is a folder; give a TOML file"),
        ("x" * 300, r"there is no recipe 'x+\.\.\.; give a TOML file"),
        ("x\0", r"there is no recipe 'x\\x00'; give a TOML file"),
    ],
)
def test_recipes_that_are_not_there(given, message, write, tmp_path, monkeypatch):
    write("fruit.toml", "")
    write("recipes/apples.toml", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        read_recipe(given)
    with pytest.raises(RecipeError, match=message):
        read_recipe(write("zzzzzz.toml", f"extends = {json.dumps(given)}"))


def test_a_recipe_that_may_not_be_read(write, monkeypatch):
    path = write("a.toml", "")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError, match=r"a\.toml cannot be read as TOML: Permission denied"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog\n".encode("utf-16"), "cannot be read as text: byte 0 is not UTF-8"),
        ("cat\ndog\ncat\n", "data.classes has 'cat' twice"),
        ("c\0at\n", r"data.classes is 'c\x00at', which holds a NUL character"),
        ("background\ncat\n", "data.classes has 'background', which is no class"),
        ("x\n" * 10**6, "cannot be read as text: it has more than 1048576 bytes"),
    ],
)
def test_lists_of_classes_of_any_kind(content, message, write):
    path = write("a.toml", BASE + '[data]\nclasses = "names.txt"\n')
    (path.parent / "names.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=rf"a\.toml: .*{re.escape(message)}"):
        read_recipe(path)
    (path.parent / "names.txt").write_bytes("\ufeffcat\r\nköter\r\n".encode())
    assert read_recipe(path).data.classes == ("cat", "köter")


@pytest.mark.parametrize("classes", ["x" * 5000, "lists", "\0"])
def test_no_file_of_classes(classes, write):
    write("lists/a", "")
    path = write("a.toml", BASE + f"[data]\nclasses = {json.dumps(classes)}\n")
    with pytest.raises(RecipeError, match=r"a\.toml: data\.classes is '.*there is no file .*; give 'voc' or 'coco'"):
        read_recipe(path)


def test_the_backbones_of_the_recipes_are_those_of_the_package():
    assert tuple(_BACKBONES) == BACKBONES
    assert STRIDES[-1] == SIZE_STEP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "frut.toml"], "there is no recipe 'frut.toml'"),
        (["train", "bccd", "--set", "model.size=100"], "--set: model.size is 100; sides must be multiples of 64"),
        (
            ["train", "vgg16_voc07_320", "--set", "model.backbone=vgg"],
            "--set: model.backbone is 'vgg'; did you mean 'vgg16'?",
        ),
        (["train", "bccd", "--device", "gpu"], "'gpu' is none; give auto, cpu, cuda or cuda:N"),
        (["evaluate", "bccd", "--data", "x", "--device", "cuda:-1"], "'cuda:-1' is none; give"),
        (["detect", "bccd", "x.jpg", "--device", "cuda:٣"], "'cuda:٣' is none; give"),
    ],
)
def test_mistakes_are_told_before_torch_is_loaded(arguments, message):
    program = (
        "import sys\nfrom refinedet.commands.main import main\n"
        f"status = main({arguments!r})\nprint(status, [name for name in ('torch', 'cv2') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout == "2 []\n"
    assert message in done.stderr
