#!/usr/bin/env bash
# 2026-11-28, setuptools 84.2.1 (pip of the interpreter, Python 3.11).
#
# A package in flat layout (demo/demo/__init__.py beside demo/pyproject.toml), installed with `pip install --editable`.
# Likely guess: it can be imported from every folder, and a line that repeats a default, package-dir = {"" = "."}, changes
# nothing.
# Seen: setuptools installs an import hook, which Python asks after it has looked at the folders. In the folder that holds
# the clone, the clone itself is found first, as an empty namespace package, so the import "works" and has no content.
# With the line that repeats the default setuptools writes a static path instead of the hook, and the import is right.
set -euo pipefail
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check setuptools==84.2.1

seen_from_the_parent_folder() {
  mkdir -p demo/demo
  echo 'here = True' > demo/demo/__init__.py
  printf '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n' > demo/pyproject.toml
  printf '[project]\nname = "demo"\nversion = "1"\n[tool.setuptools]\n%s\n' "$1" >> demo/pyproject.toml
  venv/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --editable demo
  (cd / && "$top"/venv/bin/python -c 'import demo; assert demo.here')  # anywhere else it is right
  venv/bin/python -c 'import demo; print(getattr(demo, "here", "an empty namespace package"))'
  venv/bin/pip uninstall --quiet --yes demo
  rm -rf demo
}

hook=$(seen_from_the_parent_folder 'packages = ["demo"]')
path=$(seen_from_the_parent_folder $'packages = ["demo"]\npackage-dir = {"" = "."}')
echo "without package-dir: $hook"
echo "with package-dir:    $path"
[ "$hook" = "an empty namespace package" ] && [ "$path" = "True" ]
