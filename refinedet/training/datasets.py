"""The data of a recipe: its splits, opened and checked, and the loader of its batches."""

from __future__ import annotations

from pathlib import Path

from refinedet.data import DetectionDataset, TrainAugment, TrainLoader, open_dataset
from refinedet.errors import DataError, RecipeError
from refinedet.preprocessing import Preprocessing
from refinedet.progress import write
from refinedet.training.recipe import Recipe


def open_training_data(recipe: Recipe) -> DetectionDataset:
    """The training split of a recipe, or its several splits as one data set.

    Raises:
        RecipeError: the recipe has no ``data.root``.
        DataError: the data set cannot be used.
    """
    classes = recipe.data.classes
    parts: list[DetectionDataset] = []
    for split in recipe.data.train_splits:
        parts.append(_open_split(recipe, split, classes))
        classes = parts[0].classes
    if len(parts) == 1:
        return parts[0]
    records = [record for part in parts for record in part.records]
    return DetectionDataset(" + ".join(part.name for part in parts), parts[0].classes, records)


def open_test_data(recipe: Recipe, classes: tuple[str, ...]) -> DetectionDataset:
    """The test split of a recipe, labelled by ``classes``; raises as `open_training_data`."""
    return _open_split(recipe, recipe.data.test_split, classes)


def check_objects(dataset: DetectionDataset, use_difficult: bool) -> None:
    """Raise DataError when nothing can be learned: every loss would be 0."""
    if not any(use_difficult or not all(record.difficult) for record in dataset.records if len(record.labels)):
        raise DataError(f"{dataset.name}: no image has a usable object to learn from; check the annotations")


def announce(dataset: DetectionDataset, recipe: Recipe) -> None:
    """Say what is there to learn from: a misspelt class stands out by its few objects."""
    write(f"{dataset.name}: {len(dataset)} images\n{dataset.class_table()}")
    if recipe.data.classes is None:
        write("classes are those of the annotations; data.classes in the recipe makes any other an error")


def training_batches(recipe: Recipe, dataset: DetectionDataset, preprocessing: Preprocessing) -> TrainLoader:
    """The loader of the augmented batches that the recipe trains on."""
    settings = recipe.train
    return TrainLoader(
        dataset,
        TrainAugment(recipe.model.input_size, preprocessing, recipe.augment),
        settings.batch_size,
        settings.seed,
        settings.workers,
        recipe.data.use_difficult,
        recipe.data.cache,
    )


def _open_split(recipe: Recipe, split: str, classes: tuple[str, ...] | None) -> DetectionDataset:
    data = recipe.data
    if data.root is None:
        raise RecipeError(f"recipe {recipe.name} has no data.root: give the data folder there or with --data")
    folder, _, name = split.rpartition("/")
    root = Path(data.root) / folder
    return open_dataset(root, name, format=data.format, classes=classes, allow_outside=data.allow_outside)
