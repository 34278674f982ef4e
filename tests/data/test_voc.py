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
    message = (
        r"a\.xml: class 'ct' is not among the 2 known classes \(cat, dog\); did you mean 'cat'\? correct "
        r"the annotation, or the list of classes if it is the one with the mistake \(data.classes in a recipe\)"
    )
    with pytest.raises(DataError, match=message):
        VOCDataset(root, "train", classes=["cat", "dog"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "the list of classes is empty"),
        (["cat", "dog", "cat"], "class 'cat' is named twice"),
        ([1, 2], r"classes is \[1, 2\]; give a list of names, each a text"),
        (["cat", " "], r"classes is \['cat', ' '\]; give a list of names, each a text"),
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


def test_an_annotated_size_of_0_differs_from_the_images(tmp_path):
    """37 files of a public set of fruit have it; their boxes are sound."""
    root = tree(tmp_path, {"a": xml(CAT, width=0, height=0), "b": xml(CAT)})
    with pytest.warns(UserWarning, match=r"annotated image size differs from the image's, which is used: 1 \(a.xml\)"):
        dataset = VOCDataset(root, "train")
    np.testing.assert_allclose(dataset[0].boxes, [[10 / 64, 0.25, 0.5, 0.5]])


def test_an_annotated_size_that_is_turned_names_exif(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT, width=HEIGHT, height=WIDTH)})
    with pytest.warns(UserWarning, match=r"turned by 90 degrees.* EXIF .*stored pixels.*: 1 \(a.xml\)"):
        dataset = VOCDataset(root, "train")
    np.testing.assert_allclose(dataset[0].boxes, [[10 / 64, 0.25, 0.5, 0.5]])


SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width/><height/></size>",
        f"<size><width>{WIDTH}</width></size>",
        "<size><width>Unspecified</width><height>Unspecified</height></size>",
        "<size><width>nan</width><height>inf</height></size>",
        f"<size><width>{'9' * 400}</width><height>{'9' * 400}</height></size>",
    ],
)
def test_an_annotated_size_that_says_nothing_is_no_matter(tmp_path, size):
    assert len(open_quietly(tree(tmp_path, {"a": xml(CAT).replace(SIZE, size)}))) == 1


@pytest.mark.parametrize(
    ("text", "difficult"),
    [
        ("", False),
        ("Unspecified", False),
        ("False", False),
        ("no", False),
        (" 1 ", True),
        ("true", True),
        ("Yes", True),
    ],
)
def test_words_for_difficult(tmp_path, text, difficult):
    dataset = open_quietly(tree(tmp_path, {"a": xml(xml_object("cat", (1, 1, 9, 9), text))}))
    assert dataset[0].difficult.tolist() == [difficult]


def test_a_box_without_area_in_float32_is_dropped(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT, xml_object("cat", (10, 10, "10.0000001", 20)))})
    with pytest.warns(UserWarning, match="boxes of no area, dropped: 1"):
        assert len(VOCDataset(root, "train")[0].labels) == 1


def test_a_box_of_any_size_is_clipped_without_a_word_of_numpy(tmp_path):
    root = tree(tmp_path, {"a": xml(xml_object("cat", ("-1e308", 0, "1e308", 48)))})
    with pytest.warns(UserWarning, match="boxes partly outside the image, clipped: 1") as caught:
        dataset = VOCDataset(root, "train")
    assert len(caught) == 1
    assert dataset[0].boxes.tolist() == [[0, 0, 1, 1]]


# What is made in the encodings of the world ---------------------------------------------------------------------------

ENCODINGS = [
    ("gb2312", "gb2312", "裂纹"),
    ("GB2312", "gbk", "裂紋"),  # beyond gb2312, as Windows writes it
    ("gbk", "gbk", "裂纹"),
    ("GB18030", "gb18030", "裂纹\U00020000"),
    ("cp936", "gbk", "裂纹"),
    ("Shift_JIS", "shift_jis", "傷"),
    ("shift-jis", "cp932", "①傷"),
    ("x-sjis", "cp932", "傷"),
    ("Windows-31J", "cp932", "傷"),
    ("EUC-JP", "euc_jp", "傷"),
    ("ISO-2022-JP", "iso2022_jp", "傷"),
    ("Big5", "big5", "裂紋"),
    ("big5-hkscs", "big5hkscs", "裂紋"),
    ("EUC-KR", "euc_kr", "결함"),
    ("ks_c_5601-1987", "cp949", "햏결함"),
    ("windows-1251", "cp1251", "трещина"),
    ("windows-1252", "cp1252", "Riß €"),
    ("iso-8859-1", "latin-1", "Riß"),
    ("ISO-8859-15", "iso8859_15", "Riß €"),
    ("koi8-r", "koi8_r", "трещина"),
    ("utf8", "utf-8", "裂纹"),
    ("UTF-8", "utf-8-sig", "裂纹"),
    ("utf-16", "utf-16", "裂纹"),
    ("UTF-16", "utf-16-le", "裂纹"),
    ("UTF-16", "utf-16-be", "裂纹"),
    ("utf-16", "utf-8", "裂纹"),  # as .NET does
]


@pytest.mark.parametrize(("declared", "encoding", "name"), ENCODINGS)
def test_declared_encodings(tmp_path, declared, encoding, name):
    root = tree(tmp_path, {"a": xml()})
    text = f"<?xml version='1.0' encoding='{declared}'?>\n" + xml(xml_object(name, (10, 12, 32, 24)))
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    dataset = open_quietly(root)
    assert dataset.classes == (name,)
    np.testing.assert_allclose(dataset[0].boxes, [[10 / 64, 0.25, 0.5, 0.5]])


def test_a_declaration_after_a_blank_line(tmp_path):
    text = '\n<?xml version="1.0" encoding="utf-8"?>' + xml(CAT)
    assert open_quietly(tree(tmp_path, {"a": text})).classes == ("cat",)


@pytest.mark.parametrize("declaration", ["", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-8"?>'])
def test_another_encoding_than_the_declared_one_is_named(tmp_path, declaration):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "Annotations" / "a.xml").write_bytes((declaration + xml(xml_object("裂纹", (1, 1, 9, 9)))).encode("gbk"))
    with pytest.raises(DataError, match=r"a\.xml: malformed XML \(not utf-8: .*\); declare the encoding"):
        VOCDataset(root, "train")


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "hex", "base64", "undefined"])
def test_what_is_no_encoding_of_a_text(tmp_path, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + xml(CAT)
    with pytest.raises(DataError, match=r"a\.xml: malformed XML"):
        VOCDataset(tree(tmp_path, {"a": text}), "train")


# Files that systems and editors leave behind --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hidden", ["._a.xml", ".ipynb_checkpoints/a-checkpoint.xml", "__MACOSX/._a.xml", "sub/.b.xml", ".Trash-1000/a.xml"]
)
@pytest.mark.parametrize("content", [b"\x00\x05\x16\x07 Mac OS X", xml(xml_object("ghost", (1, 1, 9, 9))).encode()])
def test_hidden_files_are_no_annotations(tmp_path, hidden, content):
    root = tree(tmp_path / ".cache" / "data", {"a": xml(CAT)})  # the data set itself may lie anywhere
    file = root / "Annotations" / hidden
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    assert open_quietly(root).classes == ("cat",)


def test_hidden_files_are_no_splits_images_or_folders(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    for name in ("JPEGImages/._a.png", "JPEGImages/Thumbs.db", "JPEGImages/.DS_Store", "ImageSets/Main/._train.txt"):
        (root / name).write_bytes(b"\x00\x05\x16\x07 Mac OS X")
    (root / ".PNGImages").mkdir()
    (root / "JPEGImages").rename(root / "AllImages")
    assert open_quietly(root)[0].image.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(DataError, match=r"no such split; the splits there: train$"):
        VOCDataset(root, "test")


def test_hidden_files_listed_in_a_split_are_left_out(tmp_path):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "Annotations" / "._a.xml").write_bytes(b"\x00\x05\x16\x07 Mac OS X")
    (root / "ImageSets" / "Main" / "train.txt").write_text(
        "._a.xml\na.xml\n.DS_Store\n.ipynb_checkpoints\nThumbs.db\n__MACOSX/._b.jpg\n"
    )
    with pytest.warns(UserWarning, match=r"hidden files listed in the split, left out: 5 \(train.txt\)"):
        dataset = VOCDataset(root, "train")
    assert [record.image_id for record in dataset.records] == ["a"]


# Splits as people write them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["a.b", "a.b.jpg", "a.b.PNG", "JPEGImages/a.b.jpg", "./JPEGImages/a.b.jpg", "Annotations/a.b.xml", "a.b.xml",
     '"a.b",',
     "JPEGImages\\a.b.jpg", '"a.b"', "'a.b.jpg'", "  a.b  ", "a.b 1", "a.b.jpg -1", "JPEGImages/a.b.jpg 1",
     "voc/JPEGImages/a.b.jpg", "a.b # a comment"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_a_split(tmp_path, line, end):
    root = tree(tmp_path / "voc", {"a.b": xml(CAT), "an image 1": xml(DOG)})
    text = f"\ufeff# made by hand{end}{line}{end}{end}an image 1.jpg{end}"
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(text.encode())
    assert [record.path.name for record in open_quietly(root).records] == ["a.b.png", "an image 1.png"]


def test_lines_of_a_split_with_the_path_of_the_data_set(tmp_path, monkeypatch):
    root = tree(tmp_path / "voc", {"a": xml(CAT)})
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{root}/JPEGImages/a.png\n")
    assert [record.image_id for record in open_quietly(root).records] == ["a"]
    monkeypatch.chdir(root)
    assert [record.image_id for record in open_quietly(Path("."))] == ["a"]


@pytest.mark.parametrize(
    "line", ["ghost.jpg", "JPEGImages/ghost.jpg", '"ghost"', "ghost -1", "ghost\x00", "ghost,a", "ghost" * 100]
)
def test_lines_that_mean_nothing_are_named(tmp_path, line):
    root = tree(tmp_path, {"a": xml(CAT)})
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{line}\n")
    message = r"ghost.*\.xml: no such annotation file; restore it or remove the id .*train\.txt, line 2: '.*ghost"
    with pytest.raises(DataError, match=message):
        VOCDataset(root, "train")


# Names that leave the data folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_an_id_stays_in_the_data_folder(tmp_path, absolute):
    tree(tmp_path / "other", {"b": xml(CAT)})
    (tmp_path / "other" / "Annotations" / "b.xml").rename(tmp_path / "other" / "b.xml")
    (tmp_path / "other" / "JPEGImages" / "b.png").rename(tmp_path / "other" / "b.png")
    root = tree(tmp_path / "voc", {"a": xml(CAT)})
    line = f"{tmp_path}/other/b" if absolute else "../../other/b"
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{line}\n")
    with pytest.raises(DataError, match=r"train.txt, line 2: '.*other/b' leaves the data folder .*allow_outside"):
        open_dataset(root, "train", classes=["cat"])
    dataset = open_dataset(root, "train", classes=["cat"], allow_outside=True)
    assert dataset[1].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_filename_stays_in_the_data_folder(tmp_path, absolute):
    root = tree(tmp_path / "voc", {"a": xml(CAT)})
    (root / "JPEGImages" / "a.png").rename(tmp_path / "outside.png")
    name = f"{tmp_path}/outside.png" if absolute else "../../outside.png"
    (root / "Annotations" / "a.xml").write_text(xml(CAT, filename=name))
    with pytest.raises(DataError, match=r"a.xml: <filename> '.*outside.png' leaves the data folder"):
        open_dataset(root, "train")
    assert open_dataset(root, "train", allow_outside=True)[0].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", ["../../elsewhere/a.png", "/home/somebody/a.png", "C:\\pictures\\a.png", "\x07a" * 99])
def test_a_filename_that_nothing_depends_on_may_be_anything(tmp_path, name):
    text = xml(CAT, filename=name.replace("\x07", ""))
    assert open_quietly(tree(tmp_path, {"a": text})).records[0].path.name == "a.png"


def test_links_in_the_data_folder_are_followed(tmp_path):
    root = tree(tmp_path / "voc", {"a": xml(CAT)})
    (root / "JPEGImages").rename(tmp_path / "pictures")
    (root / "JPEGImages").symlink_to(tmp_path / "pictures")
    assert open_quietly(root)[0].image.shape == (HEIGHT, WIDTH, 3)


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
        (xml(xml_object("cat", (1, 1, "9" * 300 + "x", 9))), r"a\.xml: <bndbox/xmax> is '9{199}\.\.\., not a number"),
        ("<annotation>" * 20000, r"a\.xml: malformed XML"),
        ("<html><body>404</body></html>", r"a\.xml: its root is 'html', not VOC's 'annotation'; replace it"),
        (xml(CAT).replace("<annotation>", '<annotation xmlns="v">'), r"its root is '\{v\}annotation', not VOC's"),
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


def test_split_that_is_nearly_right_is_named(tmp_path):
    with pytest.raises(DataError, match=r"trian\.txt: no such split; did you mean 'train'\? the splits there: train"):
        VOCDataset(tree(tmp_path, {"a": xml(CAT)}), "trian")


@pytest.mark.parametrize("text", ["nan", "n/a", "4_0"])
def test_numbers_of_other_languages_are_named(tmp_path, text):
    with pytest.raises(DataError, match=f"<difficult> is '{text}', not a number"):
        VOCDataset(tree(tmp_path, {"a": xml(CAT).replace("<difficult>0<", f"<difficult>{text}<")}), "train")


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


@pytest.mark.parametrize("format", [None, "voc", "coco"])
def test_a_folder_of_pictures_is_no_data_set(tmp_path, format):
    (tmp_path / "train").mkdir()
    cv2.imwrite(str(tmp_path / "train" / "a.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(DataError, match=r"neither a VOC data set .* nor a COCO one .*; check the path"):
        open_dataset(tmp_path, "train", format=format)


def test_open_dataset_obeys_the_format(tmp_path):
    with pytest.raises(DataError, match=r"instances_train\.json: no such split; the splits there: none"):
        open_dataset(tree(tmp_path, {"a": xml(CAT)}), "train", format="coco")
    assert COCODataset is not VOCDataset
