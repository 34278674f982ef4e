"""Conversion: what is found from the layers, both directions, every table of learned layers, networks that do not fit.

Most networks here have two channels (`support.caffe_files.narrow_outline`): the same layers in small files.
"""

import csv
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.caffe_files import (
    blob,
    caffemodel,
    data_layer,
    layer,
    narrow_blobs,
    narrow_outline,
    use_narrow_networks,
    write,
)
from support.paths import ROOT
from support.synthetic import tiny_checkpoint

import refinedet
from refinedet.anchors import generate_anchors
from refinedet.classes import COCO_CLASSES, VOC_CLASSES
from refinedet.errors import CheckpointError, InputError
from refinedet.models import ModelConfig, allocate, build, load_pretrained, outline
from refinedet.models.pretrained import NEW_PARTS
from refinedet.preprocessing import Preprocessing
from refinedet.presets import COCO, OFFICIAL
from refinedet.weights.caffe_names import caffe_names, from_caffe, layer_types, to_caffe
from refinedet.weights.caffemodel import read_caffemodel
from refinedet.weights.checkpoint import read_metadata, read_model, save_model, save_tensors
from refinedet.weights.convert import convert
from refinedet.weights.luuuyi import luuuyi_names
from refinedet.weights.subsampling import select_classes

TABLES = ROOT / "docs" / "specification"
VARIANTS = [
    ("vgg16", VOC_CLASSES, "vgg16_voc_320"),
    ("vgg16", VOC_CLASSES, "vgg16_voc_512"),
    ("vgg16", COCO_CLASSES, "vgg16_coco_320"),
    ("vgg16", COCO_CLASSES, "vgg16_coco_512"),
    ("resnet101", COCO_CLASSES, "resnet101_coco_320"),
    ("resnet101", COCO_CLASSES, "resnet101_coco_512"),
]


@pytest.fixture
def narrow(monkeypatch):
    use_narrow_networks(monkeypatch.setattr)


@pytest.fixture
def vgg(narrow, tmp_path):
    return write(
        tmp_path / "VOC0712_refinedet_vgg16_320x320_final.caffemodel", caffemodel(narrow_blobs("vgg16", VOC_CLASSES))
    )


def table(name: str) -> list[dict[str, str]]:
    with (TABLES / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# the tables of the specification -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "classes", "name"), VARIANTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_learned_layer_is_mapped_both_ways(backbone, classes, name):
    """Names, types and shapes, none left over: of real size, in memory that nobody fills."""
    rows = table(f"{name}_learned_layers")
    shapes = {
        (row["layer_name"], index): tuple(map(int, shape.split("x")))
        for row in rows
        for index, shape in enumerate(row["blob_shapes"].split(";"))
    }
    network = outline(ModelConfig(backbone, (64, 64), classes))
    tensors = from_caffe(network, {blob_name: np.zeros(shape, np.float32) for blob_name, shape in shapes.items()})
    state = network.state_dict()
    assert {key: t.shape for key, t in tensors.items()} == {key: t.shape for key, t in state.items()}
    assert {key: array.shape for key, array in to_caffe(network, tensors).items()} == shapes
    assert layer_types(network) == {row["layer_name"]: row["caffe_type"] for row in rows}


def test_every_tensor_of_the_port_is_mapped_both_ways():
    rows = table("caffe_to_luuuyi_vgg16")
    network = outline(ModelConfig("vgg16", (64, 64), VOC_CLASSES))
    shapes = {name: "x".join(map(str, tensor.shape)) for name, tensor in network.state_dict().items()}
    caffe, port = caffe_names(network), luuuyi_names(network)
    ours = {(*map(str, caffe[name]), port[name], shapes[name]) for name in shapes}
    assert len(ours) == len(rows) == 98
    assert ours == {
        (row["caffe_layer"], row["caffe_blob"], row["luuuyi_state_dict_key"], row["shape_voc"]) for row in rows
    }


# there and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"packed": False}, {"v1": True, "legacy": True}])
@pytest.mark.parametrize(("backbone", "classes"), [("vgg16", VOC_CLASSES), ("resnet101", COCO_CLASSES)])
def test_blobs_come_back_bit_for_bit(narrow, tmp_path, backbone, classes, form):
    blobs = narrow_blobs(backbone, classes)
    source = write(tmp_path / f"refinedet_{backbone}_512x512.caffemodel", caffemodel(blobs, **form))
    found = convert(source, tmp_path / "model.safetensors")
    assert (found.format, found.backbone, found.ignored) == ("caffemodel", backbone, ())
    assert found.config == ModelConfig(
        backbone, (512, 512), classes, COCO if classes == COCO_CLASSES else OFFICIAL, tcb_channels=2
    )
    assert found.values == sum(array.size for array in blobs.values())
    convert(tmp_path / "model.safetensors", tmp_path / "back.caffemodel")
    back = read_caffemodel(tmp_path / "back.caffemodel")
    assert back.name == f"refinedet_{backbone}_512x512"
    assert back.blobs.keys() == blobs.keys()
    for name, array in blobs.items():
        assert back.blobs[name].shape == array.shape
        assert back.blobs[name].tobytes() == array.tobytes(), name


def test_statistics_of_a_training_come_back_bit_for_bit(narrow, tmp_path):
    """They are rounded to float32, and for some factors no sum leads back: any factor, then, that does."""
    network = narrow_outline(ModelConfig("resnet101", (64, 64), VOC_CLASSES))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(t.shape, generator=generator) + 0.5 for name, t in network.state_dict().items()}
    for name in state:
        if name.endswith("factor"):
            state[name] = torch.tensor(999.98) if "res2" in name else torch.rand((), generator=generator) * 1000
    state["backbone.conv1.norm.factor"] = torch.tensor(0.0)  # never trained, as `build` leaves it
    save_tensors(tmp_path / "a.safetensors", network.config, state, {})
    convert(tmp_path / "a.safetensors", tmp_path / "b.caffemodel")
    convert(tmp_path / "b.caffemodel", tmp_path / "c.safetensors", size=(64, 64))
    config, back = read_model(tmp_path / "c.safetensors")
    assert config.classes == VOC_CLASSES
    kept = 0
    for name, tensor in state.items():
        if name.endswith("factor"):
            kept += bool(back[name] == tensor)
            assert 0.7 < back[name] / tensor < 1.42 or tensor == 0
        else:
            assert torch.equal(back[name].float(), tensor), name
    assert kept > 10


def test_statistics_are_caffes_sums_by_their_factor(narrow, tmp_path):
    blobs = narrow_blobs("resnet101", VOC_CLASSES)
    convert(write(tmp_path / "a320.caffemodel", caffemodel(blobs)), tmp_path / "a.safetensors")
    _, tensors = read_model(tmp_path / "a.safetensors")
    expected = blobs["bn2a_branch1", 1].astype(np.float64) / blobs["bn2a_branch1", 2]
    assert np.array_equal(tensors["backbone.res2a.branch1.norm.running_var"].numpy(), expected)


@pytest.mark.parametrize(
    ("backbone", "parts"),
    [("vgg16", {"tcb": False}), ("resnet101", {"tcb": False}), ("resnet101", {"head_bottleneck": False})],
)
def test_models_without_some_parts(narrow, tmp_path, backbone, parts):
    """The ablation's and the paper's."""
    blobs = narrow_blobs(backbone, VOC_CLASSES, **parts)
    source = write(tmp_path / "a_320.caffemodel", caffemodel(blobs))
    found = convert(source, tmp_path / "a.safetensors")
    assert found.config.preset == replace(OFFICIAL, **parts)
    convert(tmp_path / "a.safetensors", tmp_path / "b.caffemodel")
    back = read_caffemodel(tmp_path / "b.caffemodel").blobs
    assert back.keys() == blobs.keys()


def test_a_real_network_loads_and_carries_its_origin(tmp_path):
    """Of real size, but for the transfer connection blocks: loaded and used."""
    network = build("vgg16", 64, classes=["a"], preset=replace(OFFICIAL, tcb=False)).eval()
    save_model(network, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.caffemodel")
    found = convert(tmp_path / "b.caffemodel", tmp_path / "c.safetensors", size=(64, 64), classes=["cell"])
    detector = refinedet.load(tmp_path / "c.safetensors")
    assert detector.classes == ("cell",)
    source = read_metadata(found.output)["facts"]["source"]
    assert (source["file"], source["format"], len(source["sha256"])) == ("b.caffemodel", "caffemodel", 64)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(network(image)[2:], detector.network(image)[2:], strict=True):
            assert torch.equal(ours, theirs)


# what is found -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "size", "told_by"),
    [
        ("VOC0712_refinedet_vgg16_320x320_ft_final", b"", (320, 320), "the file's name"),
        ("coco_refinedet_vgg16_512x512", b"", (512, 512), "the file's name"),
        ("RefineDet512_VOC_final", b"", (512, 512), "the file's name"),
        ("refinedet_vgg16_1024x512", b"", (512, 1024), "the file's name"),
        ("folder_320x320/RefineDet512_VOC_final", b"", (512, 512), "the file's name"),
        ("net", data_layer(320, 512), (320, 512), "the file's layers"),
        ("net_512x512", data_layer(320, 320), (320, 320), "the file's layers"),
        ("net_512x512", data_layer(300, 300), (512, 512), "the file's name"),
    ],
)
def test_size(narrow, tmp_path, name, content, size, told_by):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    source = write(tmp_path / f"{name}.caffemodel", caffemodel(narrow_blobs("vgg16", VOC_CLASSES), extra=content))
    found = convert(source, tmp_path / "a.safetensors")
    assert (found.config.size, found.size_from) == (size, told_by)


def test_a_size_that_is_no_square_comes_back(narrow, tmp_path):
    source = write(tmp_path / "net.caffemodel", caffemodel(narrow_blobs("vgg16", VOC_CLASSES)))
    wide = convert(source, tmp_path / "wide.safetensors", size=(320, 512)).output
    caffe = convert(wide, tmp_path / "wide.caffemodel").output
    assert convert(caffe, tmp_path / "back.safetensors").config.size == (320, 512)


def test_size_from_the_networks_and_the_folders_name_and_the_user(narrow, tmp_path):
    content = caffemodel(narrow_blobs("vgg16", VOC_CLASSES), name="VOC0712_refinedet_vgg16_512x512_train")
    found = convert(write(tmp_path / "net.caffemodel", content), tmp_path / "a.safetensors")
    assert (found.config.size, found.size_from) == ((512, 512), "the network's name")
    (tmp_path / "refinedet_vgg16_320x320").mkdir()
    source = write(
        tmp_path / "refinedet_vgg16_320x320" / "net.caffemodel", caffemodel(narrow_blobs("vgg16", VOC_CLASSES))
    )
    found = convert(source, tmp_path / "a.safetensors")
    assert (found.config.size, found.size_from) == ((320, 320), "the folder's name")
    found = convert(source, tmp_path / "a.safetensors", size=(128, 192))
    assert (found.config.size, found.size_from) == ((128, 192), "--size")


@pytest.mark.parametrize("name", ["VOC0712_final", "net_iter_6400", "net_3200", "net_300x300", "net_8192x8192"])
def test_a_size_that_nothing_tells_is_asked_for(narrow, tmp_path, name):
    source = write(tmp_path / f"{name}.caffemodel", caffemodel(narrow_blobs("vgg16", VOC_CLASSES)))
    with pytest.raises(InputError, match=r"neither its layers nor its name .* --size 320 or --size 512"):
        convert(source, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_classes_of_another_number_are_asked_for(narrow, tmp_path):
    source = write(tmp_path / "cells_320.caffemodel", caffemodel(narrow_blobs("vgg16", ["a", "b"])))
    with pytest.raises(InputError, match=r"has 2 classes, neither VOC's 20 nor COCO's 80; .* --classes FILE"):
        convert(source, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="has 2 classes, and 3 names are given"):
        convert(source, tmp_path / "a.safetensors", classes=["a", "b", "c"])
    assert convert(source, tmp_path / "a.safetensors", classes=["x", "y"]).config.classes == ("x", "y")


def test_voc_out_of_coco(narrow, tmp_path):
    """Spec section 9.3, row by row: aeroplane is COCO's fifth class, and the background stays first."""
    blobs = narrow_blobs("vgg16", COCO_CLASSES)
    source = write(tmp_path / "coco_refinedet_vgg16_320x320_final.caffemodel", caffemodel(blobs))
    found = convert(source, tmp_path / "coco_refinedet_vgg16_320x320.caffemodel", select=VOC_CLASSES)
    assert (found.config.classes, found.config.preset) == (VOC_CLASSES, OFFICIAL)
    selected = read_caffemodel(found.output).blobs
    labels = {
        int(row["voc21_label"]): int(row["net_label_coco81"]) for row in table("coco_voc_labels") if row["voc21_label"]
    }
    for anchor in range(3):
        for voc, coco in labels.items():
            for index in (0, 1):
                row = selected["P4_mbox_conf", index][anchor * 21 + voc]
                assert np.array_equal(row, blobs["P4_mbox_conf", index][anchor * 81 + coco])
    changed = {name for name in blobs if selected[name].tobytes() != blobs[name].tobytes()}
    assert changed == {(f"P{level}_mbox_conf", index) for level in range(3, 7) for index in (0, 1)}
    with pytest.raises(InputError, match=r"has no class cell, nucleus; select of person, bicycle"):
        convert(source, tmp_path / "a.safetensors", select=["person", "cell", "nucleus"])
    with pytest.raises(InputError, match=r"tv, tvmonitor are one class of .*; select it once"):
        convert(source, tmp_path / "a.safetensors", select=["tv", "person", "tvmonitor"])


def test_a_checkpoint_of_other_classes_or_size(narrow, tmp_path):
    source = write(tmp_path / "a_320.caffemodel", caffemodel(narrow_blobs("vgg16", COCO_CLASSES)))
    convert(source, tmp_path / "a.safetensors")
    found = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", size=(512, 512), select=["dog", "cat"])
    config, tensors = read_model(tmp_path / "b.safetensors")
    assert found.config == config
    assert (config.size, config.classes, config.preset) == ((512, 512), ("dog", "cat"), COCO)
    _, before = read_model(tmp_path / "a.safetensors")
    expected = select_classes(before, COCO_CLASSES, ["dog", "cat"])
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    assert read_metadata(found.output)["facts"]["source"]["facts"]["source"]["file"] == "a_320.caffemodel"


def test_a_selection_keeps_the_ablation_and_thresholds_of_ones_own(narrow, tmp_path):
    """Only the benchmark's thresholds change with its classes; without its cascade a model decodes other boxes."""
    source = write(tmp_path / "a_320.caffemodel", caffemodel(narrow_blobs("vgg16", COCO_CLASSES)))
    config, tensors = read_model(convert(source, tmp_path / "a.safetensors").output)
    ablation = {"objectness_threshold": 0.0, "cascade": False}
    for changes, expected in (
        (ablation, replace(OFFICIAL, **ablation)),
        ({"nms_iou": 0.6}, replace(COCO, nms_iou=0.6)),
    ):
        changed = replace(config, preset=replace(COCO, **changes))
        save_tensors(tmp_path / "b.safetensors", changed, tensors, {})
        found = convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", select=VOC_CLASSES)
        assert found.config.preset == expected


# ImageNet backbones --------------------------------------------------------------------------------------------------


def backbone_blobs(backbone: str):
    """Those of an ImageNet network, of real size."""
    network = outline(ModelConfig(backbone, (64, 64), VOC_CLASSES))
    state, generator = network.state_dict(), np.random.default_rng(0)
    return {
        blob_name: generator.random(state[name].shape or (1,), np.float32) + np.float32(0.5)
        for name, blob_name in caffe_names(network).items()
        if name.startswith("backbone.") and not name.removeprefix("backbone.").startswith(NEW_PARTS[backbone])
    }


@pytest.mark.parametrize(("backbone", "classifier"), [("vgg16", "fc8"), ("resnet101", "fc1000")])
def test_a_backbone_starts_a_training(tmp_path, backbone, classifier):
    blobs = backbone_blobs(backbone)
    extra = layer(classifier, "InnerProduct", [blob(np.zeros((10, 4), np.float32))])
    source = write(tmp_path / "ImageNet.caffemodel", caffemodel(blobs, extra=extra))
    found = convert(source, tmp_path / "imagenet.safetensors")
    assert (found.config, found.backbone, found.ignored) == (None, backbone, (classifier,))
    network = allocate(ModelConfig(backbone, (64, 64), VOC_CLASSES))
    for name, tensor in network.state_dict().items():
        tensor.fill_(7 if name.removeprefix("backbone.").startswith(NEW_PARTS[backbone]) else np.nan)
    load_pretrained(network.backbone, found.output, "caffe")
    state = network.state_dict()
    for name, blob_name in caffe_names(network).items():
        if blob_name in blobs:
            factor = blobs[blob_name[0], 2].astype(np.float64) if "running" in name else 1
            expected = (blobs[blob_name] / factor).astype(np.float32)
            assert np.array_equal(state[name].numpy().reshape(expected.shape), expected), name
        elif name.startswith("backbone."):
            assert bool((state[name] == 7).all()), name
    with pytest.raises(CheckpointError, match=r"weights are for caffe's input, not torchvision's; .*caffe"):
        load_pretrained(network.backbone, found.output)
    with pytest.raises(CheckpointError, match="refinedet train RECIPE --weights"):
        refinedet.load(found.output)
    with pytest.raises(InputError, match="is a backbone without a size and classes"):
        convert(source, tmp_path / "a.safetensors", size=(320, 320))
    with pytest.raises(InputError, match=r"backbone alone are not written as \.caffemodel"):
        convert(source, tmp_path / "a.caffemodel")


def test_the_vgg_of_imagenet_itself_is_told_from_the_reduced_one(tmp_path):
    blobs = backbone_blobs("vgg16") | {("fc6", 0): np.zeros((1024, 25), np.float32)}  # 4096 x 25088 in the real one
    blobs = dict(sorted(blobs.items(), key=lambda item: item[0][1]))
    with pytest.raises(CheckpointError, match="it is not RefineDet's vgg16, whose fc6 and fc7 are convolutions"):
        convert(write(tmp_path / "VGG_ILSVRC_16_layers.caffemodel", caffemodel(blobs)), tmp_path / "a.safetensors")


@pytest.mark.parametrize("link", [False, True])
def test_a_model_is_not_converted_onto_itself_nor_onto_a_folder(tmp_path, link):
    state = tiny_checkpoint(tmp_path / "last.safetensors")
    before, out = state.read_bytes(), state
    if link:
        out = tmp_path / "model.safetensors"
        out.symlink_to(state)
    with pytest.raises(InputError, match="is the file to be converted, which would be lost"):
        convert(state, out)
    assert state.read_bytes() == before
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match=r"folder\.safetensors is a folder; give a file in it"):
        convert(state, tmp_path / "folder.safetensors")


def test_a_caffe_model_is_not_taken_as_it_is(vgg):
    network = allocate(ModelConfig("vgg16", (64, 64), VOC_CLASSES))
    with pytest.raises(
        CheckpointError, match=r"a model of Caffe; convert it first: refinedet convert .*--weights-input"
    ):
        load_pretrained(network.backbone, vgg, "caffe")
    with pytest.raises(CheckpointError, match=r"is a model of Caffe; convert it first: refinedet convert "):
        refinedet.load(vgg)


# the luuuyi port -----------------------------------------------------------------------------------------------------


@pytest.fixture
def port(narrow, tmp_path):
    network = narrow_outline(ModelConfig("vgg16", (64, 64), VOC_CLASSES))
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    state = {theirs: torch.rand(shapes[ours], generator=generator) for ours, theirs in luuuyi_names(network).items()}
    torch.save(state, tmp_path / "RefineDet320_VOC_final.pth")
    return tmp_path / "RefineDet320_VOC_final.pth"


def test_a_port_model_is_as_the_port_runs_it(port, tmp_path):
    found = convert(port, tmp_path / "a.safetensors")
    config, tensors = read_model(found.output)
    assert (found.format, config.size, config.classes) == ("luuuyi", (320, 320), VOC_CLASSES)
    assert config.preprocessing == Preprocessing(mean=(104, 117, 123), order="rgb")
    assert (config.preset.name, config.preset.top_k, config.preset.keep_top_k) == ("luuuyi", 1000, None)
    assert config.clip_anchors
    state = torch.load(port, weights_only=True)
    for ours, theirs in luuuyi_names(narrow_outline(config)).items():
        assert torch.equal(tensors[ours], state[theirs])


def test_a_port_model_for_caffe_reads_bgr(port, tmp_path):
    convert(port, tmp_path / "b_320.caffemodel")
    blobs = read_caffemodel(tmp_path / "b_320.caffemodel").blobs
    state = torch.load(port, weights_only=True)
    assert np.array_equal(blobs["conv1_1", 0], state["vgg.0.weight"].flip(1).numpy())
    assert np.array_equal(blobs["conv1_2", 0], state["vgg.2.weight"].numpy())


def test_clipped_anchors_are_a_setting_of_the_model(tmp_path):
    for size, differing in ((320, 50), (512, 0)):
        plain, clipped = generate_anchors((size, size)), generate_anchors((size, size), clip=True)
        assert int((plain != clipped).any(dim=1).sum()) == differing
        assert torch.equal(clipped, plain.clamp(0, 1))
    network = build("squeezenet", 320, 3, tcb_channels=8)
    network.config = replace(network.config, clip_anchors=True)
    save_model(network, tmp_path / "a.safetensors")
    loaded = refinedet.load(tmp_path / "a.safetensors").network
    assert torch.equal(loaded.anchors, generate_anchors((320, 320), clip=True))
    assert torch.equal(loaded.anchors_for((192, 320)), generate_anchors((192, 320), clip=True))
    older = json.loads(network.config.to_json())
    del older["clip_anchors"]
    assert not ModelConfig.from_json(json.dumps(older)).clip_anchors
    with pytest.raises(CheckpointError, match="clip_anchors is 1; give True or False"):
        ModelConfig.from_json(json.dumps(older | {"clip_anchors": 1}))


def change(port, **tensors):
    state = {name: t for name, t in torch.load(port, weights_only=True).items() if tensors.get(name, t) is not None}
    torch.save(state | {name: t for name, t in tensors.items() if t is not None}, port)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"vgg.0.bias": None}, "missing: vgg.0.bias"),
        ({"vgg.35.bias": torch.zeros(2)}, "unexpected: vgg.35.bias"),
        ({"tcb0.0.weight": torch.zeros(2, 2)}, r"of wrong shape: tcb0.0.weight \[2, 2\] instead of \[2, 2, 3, 3\]"),
        ({"odm_conf.0.weight": None}, "not a RefineDet of the luuuyi port: it lacks odm_conf.0.weight and has vgg.0"),
        ({"odm_conf.0.weight": torch.zeros(5, 2, 3, 3)}, "whose rows are no classes of 3 anchors"),
        (
            {"vgg.0.bias": torch.zeros(1).expand(1 << 40)},
            r"vgg.0.bias repeats the values it holds \(\[1099511627776\]\)",
        ),
        ({"vgg.0.bias": torch.tensor([float("nan"), 0])}, "vgg.0.bias holds values that are not finite"),
    ],
)
def test_a_port_model_that_does_not_fit(port, tmp_path, tensors, words):
    change(port, **tensors)
    with pytest.raises(CheckpointError, match=words):
        convert(port, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_packed_file_that_unpacks_to_far_more_is_refused(tmp_path):
    plain, packed = tmp_path / "plain.pth", tmp_path / "RefineDet320_VOC_final.pth"
    torch.save({"odm_conf.0.weight": torch.zeros(63, 256, 9, 9)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    assert packed.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"unpacks to 52\d+ bytes, far more than it has"):
        convert(packed, tmp_path / "a.safetensors")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_more_than_tensors_is_refused(tmp_path, zipped):
    source = tmp_path / "RefineDet320_VOC_final.pth"
    torch.save(
        {"vgg.0.weight": torch.zeros(2), "x": Trap(tmp_path / "sprung")}, source, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(CheckpointError, match="holds more than plain tensors"):
        convert(source, tmp_path / "a.safetensors")
    assert not (tmp_path / "sprung").exists()


# what does not fit ---------------------------------------------------------------------------------------------------


def ssd_blobs():
    """As SSD300 has it: the same backbone, other layers behind it."""
    shared = {
        name: array
        for name, array in narrow_blobs("vgg16", VOC_CLASSES).items()
        if name[0].startswith(("conv", "fc")) and not name[0].startswith(("conv5_3_norm", "conv6_2_mbox", "fc7_mbox"))
    }
    new = {(f"conv{n}_{k}", i): np.zeros(2, np.float32) for n in (7, 8, 9) for k in (1, 2) for i in (0, 1)}
    return shared | new


def test_another_network_names_the_first_layers_that_do_not_fit(narrow, tmp_path):
    source = write(tmp_path / "SSD_300x300.caffemodel", caffemodel(ssd_blobs()))
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "a.safetensors")
    message = str(caught.value)
    assert "is a model of another network: it lacks conv5_3_norm, conv5_3_norm_mbox_loc, " in message
    assert "and 3 more of RefineDet with vgg16, and it has conv7_1, conv7_2, conv8_1, conv8_2 and 2 more" in message


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("P6-up", "lacks P6-up of RefineDet with vgg16;"),
        ("TL", "lacks TL3_1, TL3_2, TL4_1, TL4_2 and 4 more of RefineDet with vgg16;"),
        ("P", "lacks P3, P4, P5, P6 and 11 more of RefineDet with vgg16"),
        ("conv", "lacks conv1_1, conv1_2, conv2_1, conv2_2 and 19 more of RefineDet with vgg16;"),
    ],
)
def test_missing_layers(narrow, tmp_path, drop, words):
    blobs = {name: a for name, a in narrow_blobs("vgg16", VOC_CLASSES).items() if not name[0].startswith(drop)}
    with pytest.raises(CheckpointError, match=words):
        convert(write(tmp_path / "a_320.caffemodel", caffemodel(blobs)), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("blob_name", "values", "words"),
    [
        (("fc6", 0), np.zeros((2, 2, 7, 7)), r"has fc6:0 \[2, 2, 7, 7\] instead .*; it is not RefineDet with .* 21 cl"),
        (("fc6", 1), np.zeros((2, 1)), r"has fc6:1 \[2, 1\] instead of \[2\]"),
        (("fc6", 2), np.zeros(2), "has fc6:2 too much"),
        (("P3_mbox_conf", 0), np.zeros((64, 2, 3, 3)), "P3_mbox_conf has shape .* no classes of 3 anchors"),
        (("P3_mbox_conf", 0), np.zeros((3, 2, 3, 3)), "P3_mbox_conf has shape .* no classes of 3 anchors"),
        (("P5_mbox_conf", 1), np.zeros(60), r"has P5_mbox_conf:1 \[60\] instead of \[63\]"),
        (("TL3_1", 0), np.zeros((2, 2, 3, 3)) * np.nan, "a value of TL3_1:0 is not finite"),
        (("conv1_1", 1), np.array([np.inf, 0]), "a value of conv1_1:1 is not finite"),
    ],
)
def test_blobs_that_do_not_fit(narrow, tmp_path, blob_name, values, words):
    blobs = narrow_blobs("vgg16", VOC_CLASSES) | {blob_name: values.astype(np.float32)}
    blobs = dict(sorted(blobs.items(), key=lambda item: item[0][1]))  # blobs of a layer in order
    with pytest.raises(CheckpointError, match=words):
        convert(write(tmp_path / "a_320.caffemodel", caffemodel(blobs)), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("blob_name", "values", "words"),
    [
        (("bn_conv1", 1), [-1.0, 1.0], "a value of bn_conv1:1 is not 0 or more"),
        (("bn_conv1", 2), [-1.0], "a value of bn_conv1:[12] is not 0 or more"),
        (("bn_conv1", 2), [float("nan")], "a value of bn_conv1:0 is not finite"),
        (("bn_conv1", 2), [1e-40], "a value of bn_conv1:0 is not finite"),
    ],
)
def test_batch_statistics_that_are_none(narrow, tmp_path, blob_name, values, words):
    blobs = narrow_blobs("resnet101", VOC_CLASSES) | {blob_name: np.array(values, np.float32)}
    with pytest.raises(CheckpointError, match=words):
        convert(write(tmp_path / "a_320.caffemodel", caffemodel(blobs)), tmp_path / "a.safetensors")


def test_a_file_without_weights(tmp_path):
    source = write(tmp_path / "a.caffemodel", layer("data", "Input", []))
    with pytest.raises(CheckpointError, match="has no layers with weights"):
        convert(source, tmp_path / "a.safetensors")


def test_layers_beside_the_network_are_not_used(narrow, tmp_path):
    content = caffemodel(narrow_blobs("vgg16", VOC_CLASSES)) + layer("more", "", [blob(np.ones(3, np.float32))])
    found = convert(write(tmp_path / "a_320.caffemodel", content), tmp_path / "a.safetensors")
    assert found.ignored == ("more",)


def test_what_caffe_has_no_layers_for(tmp_path):
    source = tiny_checkpoint(tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match="backbone 'squeezenet' has no official Caffe model"):
        convert(source, tmp_path / "a.caffemodel")


def test_another_input_than_caffes(narrow, vgg, tmp_path):
    config, tensors = read_model(convert(vgg, tmp_path / "a.safetensors").output)
    save_tensors(tmp_path / "b.safetensors", replace(config, preprocessing=Preprocessing(std=(2, 2, 2))), tensors, {})
    with pytest.raises(InputError, match=r"a Caffe model of RefineDet reads BGR minus \(104"):
        convert(tmp_path / "b.safetensors", tmp_path / "a.caffemodel")


def test_other_anchors_than_the_official_prototxt_has(narrow, vgg, tmp_path, recwarn):
    config, tensors = read_model(convert(vgg, tmp_path / "a.safetensors").output)
    convert(tmp_path / "a.safetensors", tmp_path / "a.caffemodel")
    assert not recwarn.list
    save_tensors(tmp_path / "b.safetensors", replace(config, anchor_ratio=4.0), tensors, {})
    with pytest.warns(UserWarning, match=r"b\.caffemodel: its prior boxes need aspect_ratio: 4 in the"):
        convert(tmp_path / "b.safetensors", tmp_path / "b.caffemodel")


def test_outputs_that_cannot_be(vgg, tmp_path):
    with pytest.raises(InputError, match=r"tells no format to write; end its name in \.safetensors or \.caffemodel"):
        convert(vgg, tmp_path / "a.pth")
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        convert(vgg, tmp_path / "taken" / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot write .*choose another place"):
        convert(convert(vgg, tmp_path / "a.safetensors").output, tmp_path / "taken" / "a.caffemodel")


def test_inputs_that_are_not_there(tmp_path):
    for name in ("a.caffemodel", "a.pth"):
        with pytest.raises(CheckpointError, match=rf"{name} does not exist; check the path"):
            convert(tmp_path / name, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
