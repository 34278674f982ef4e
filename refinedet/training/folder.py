"""The folder of a training run: what its files are called, and when a run may begin in it."""

from pathlib import Path

from refinedet.errors import CheckpointError, InputError, show
from refinedet.files import is_utf8

STATE_FILE = "last.safetensors"
MODEL_FILE = "model.safetensors"
RECIPE_FILE = "recipe.toml"
RESULT_FILE = "result.json"


def check_folder(out: Path, resume: bool) -> None:
    """Raise unless a run can begin in ``out``, which is empty or absent then, or be resumed there."""
    state = out / STATE_FILE
    if not is_utf8(str(out)):
        raise InputError(f"{show(str(out))} is not UTF-8, which TensorBoard's files need; choose another folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the run")
    if resume and not state.is_file():
        raise CheckpointError(f"{out} holds no run to resume (no {STATE_FILE}); start one without resume")
    if resume or not out.is_dir():
        return
    if any(not path.name.startswith(".") for path in out.iterdir()):
        fix = "resume it (--resume) or choose" if state.is_file() else "choose"
        raise InputError(f"{out} is not empty; {fix} another folder (--out)")


def remove_leftovers(out: Path) -> None:
    """Delete temporary files of a process that was killed while writing."""
    for file in (STATE_FILE, MODEL_FILE, RECIPE_FILE, RESULT_FILE):
        name = Path(file)
        for path in out.glob(f".{name.stem}.*{name.suffix}"):
            path.unlink(missing_ok=True)
