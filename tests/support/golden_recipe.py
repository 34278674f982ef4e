"""Weights of the golden networks, drawn again from their recipe instead of being stored."""

import gzip
import json
from pathlib import Path

import numpy as np

MEAN_BGR = np.array([104, 117, 123], np.float32)


def read_recipe(path: Path) -> dict:
    with gzip.open(path, "rt") as file:
        return json.load(file)


def draw(recipe: dict) -> dict[tuple[str, int], np.ndarray]:
    """{(layer, blob): float32 array}; one generator is consumed in the order of the entries, in float64."""
    generator = np.random.RandomState(recipe["seed"])
    return {(entry["layer"], entry["blob"]): _draw_entry(entry, generator) for entry in recipe["entries"]}


def _draw_entry(entry: dict, generator: np.random.RandomState) -> np.ndarray:
    shape = tuple(entry["shape"])
    if entry["kind"] == "const":
        return np.full(shape, entry["value"], np.float32)
    if entry["kind"] == "uniform":
        return generator.uniform(entry["lo"], entry["hi"], shape).astype(np.float32)
    mean = entry["mean"]
    if isinstance(mean, list):
        mean = np.tile(np.asarray(mean, np.float64), shape[0] // len(mean))
    return (mean + entry["std"] * generator.standard_normal(shape)).astype(np.float32)


def input_blob(images_bgr: np.ndarray) -> np.ndarray:
    """[B,H,W,3] uint8 to the network's input [B,3,H,W] float32."""
    return np.ascontiguousarray((images_bgr.astype(np.float32) - MEAN_BGR).transpose(0, 3, 1, 2))
