import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", help="folder of a VOC or COCO data set, instead of the project's photographs")
    parser.addoption("--split", default="train", help="its split")
