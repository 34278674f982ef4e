"""Commands in README.md and docs are such as the command line takes; their recipes and protocols are there."""

import re
import shlex

import pytest
from support.paths import ROOT

from refinedet.commands.main import build_parser
from refinedet.protocols import PROTOCOLS
from refinedet.training.sources import recipe_names

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_COMMAND = re.compile(r"`(refinedet [^`\n]+)`|^(refinedet (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)


def commands(text: str) -> list[str]:
    """Those that are given whole: no options in brackets, as usage lines have them, and no dots for the rest."""
    found = (inline or block for inline, block in _COMMAND.findall(text))
    whole = (re.sub(r"\s#.*", "", command).replace("\\\n", " ") for command in found)
    return [command for command in whole if "[" not in command.replace("='[", "") and "..." not in command]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_are_taken(document):
    for command in commands(document.read_text()):
        words = shlex.split(command)[1:]
        if len(words) < 2 or "--help" in words or "|" in words[1]:  # the name of a command, or of several
            continue
        arguments = build_parser().parse_args(words)
        recipe = str(getattr(arguments, "recipe", "RECIPE"))
        assert recipe in recipe_names() or recipe.isupper() or recipe.endswith(".toml"), command
        protocol = getattr(arguments, "protocol", None) or "NAME"
        assert protocol in PROTOCOLS or protocol.isupper() or protocol.endswith(".toml"), command


def test_the_papers_rows_are_all_there():
    rows = commands((ROOT / "docs" / "reproducing.md").read_text())
    assert len([row for row in rows if row.startswith("refinedet evaluate") and "VOC2007" in row]) >= 8
    assert len([row for row in rows if "--submit" in row and "VOC2012" in row]) == 8
    assert len([row for row in rows if "--submit" in row and "COCO" in row]) == 8
    assert len([row for row in rows if "--set model.objectness_threshold=0.0" in row]) == 3
