"""The names that `refinedet` gives without an import of their own."""

import subprocess
import sys

import pytest
from support.commands import TIMEOUT
from support.paths import ROOT

import refinedet


def test_every_module_can_be_asked_for_at_first():
    script = (
        "import refinedet\nassert refinedet.errors.DataError and refinedet.data.read_image and refinedet.ops.detect\n"
        "from refinedet import errors, models, weights, presets\nprint(set(refinedet.__all__) <= set(dir(refinedet)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_what_is_not_there_is_an_attribute_error():
    for name in ("nothing", "_C_", "__wrapped__"):
        with pytest.raises(AttributeError, match=name):
            getattr(refinedet, name)
    assert {"errors", "data", "load"} <= set(dir(refinedet))
