"""Files that no program of ours reads: they parse, and name things that exist."""

import re
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT

import refinedet

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def make_targets(commands: str) -> set[str]:
    return set(re.findall(r"(?:^|&& )make ([a-z-]+)", commands, re.MULTILINE))


@pytest.fixture(scope="module")
def targets() -> set[str]:
    (line,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(line.split())


def commands(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_workflows_run_targets_that_exist(targets):
    used = {workflow.stem: make_targets("\n".join(commands(workflow))) for workflow in WORKFLOWS}
    assert used == {
        "gpu": {"clean", "demo", "gpu-report", "test-gpu", "benchmark"},
        "lint": {"lint"},
        "test": {"test", "test-cuda", "gpu-report", "demo"},
    }
    assert set().union(*used.values()) <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_pages_name_targets_that_exist(page, targets):
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert len(named) >= 4
    assert named <= targets


def test_warnings_are_errors_only_where_we_test():
    for workflow in WORKFLOWS:
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            assert ("REFINEDET_WERROR" in job["env"]) is (workflow.stem != "lint")
    assert "export REFINEDET_WERROR=1" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= content.keys()
    identifiers = [field["id"] for field in content["body"]]
    assert len(set(identifiers)) == len(identifiers) > 0
    assert all(field["attributes"]["label"] for field in content["body"])


def test_hooks_are_the_checks_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {hook["entry"].split()[0] for hook in hooks if hook["language"] == "system"} == set(
        re.findall(r"\$\(BIN\)/([\w-]+)", recipe)
    )


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == refinedet.__version__
    names = [
        f"{author['given-names']} {author['family-names']}" for author in citation["preferred-citation"]["authors"]
    ]
    assert names == ["Shifeng Zhang", "Longyin Wen", "Xiao Bian", "Zhen Lei", "Stan Z. Li"]
