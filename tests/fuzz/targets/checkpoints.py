"""Checkpoints: what the metadata say, the table of tensors, and the values; of models and of runs."""

import json
import random
import struct
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import timm  # noqa: F401 (its import would count as the time of the first input that names it)
import torch
from support.synthetic import CLASSES

import refinedet
from fuzz.engine import MEBIBYTE, Target
from fuzz.mutations import VALUES, damage_bytes, damage_document, damage_text
from refinedet.presets import OFFICIAL
from refinedet.weights.checkpoint import TrainingState, load_training_state, save_model, save_training_state

_KEY = "refinedet"
_STATE = "last"  # the stem of the state of a run
_LARGEST = 128 * 128  # pixels of an input that is tried, too
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
          "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}  # fmt: skip
_WORDS = ("half", "squeezenet", "vgg16", "timm:test_resnet", "bgr", "rgb", "model", "training", "official")
_NUMBERS = (0.01, 3, 64, 128, 2**20, 2**24, 2**32, -64, 10.5, 1e-9, 1e38)
_IMAGE = np.full((40, 60, 3), 128, np.uint8)

Header = dict[str, Any]


def make_seeds(folder: Path) -> list[Path]:
    """The smallest networks there are, in half precision: a model of a single step, and the state of a run."""
    torch.manual_seed(0)
    paths = [folder / "model.safetensors", folder / f"{_STATE}.safetensors"]
    single = refinedet.build("squeezenet", size=64, classes=CLASSES, preset=replace(OFFICIAL, tcb=False))
    save_model(single, paths[0], half=True, metadata={"mean_ap": 0.5, "recipe": {"train": {"steps": 3}}})
    network = refinedet.build("squeezenet", size=64, classes=CLASSES, tcb_channels=1)
    weights = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    momentum = {name: torch.zeros_like(p) for name, p in network.named_parameters() if name.startswith("odm.loc")}
    random_states = {"cpu": torch.get_rng_state()}
    save_training_state(paths[1], network, TrainingState(7, weights, momentum, {}, random_states, {"window": {}}))
    return paths


def mutate(chance: random.Random, data: bytes) -> bytes:
    """One kind of damage: the format is deep, and a reader stops at the first."""
    kinds = (_damage_metadata, _damage_metadata, _damage_metadata, _damage_table, _damage_table, _damage_values)
    if chance.random() < 0.15:
        end = 8 + struct.unpack("<Q", data[:8])[0]
        return damage_bytes(chance, data) if chance.random() < 0.2 else damage_bytes(chance, data[:end]) + data[end:]
    header, values = _split(data)
    header, values = chance.choice(kinds)(chance, header, values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + values


def read(file: Path) -> None:
    """As a user would: load it, and where that is quick find something with it; go on with the run."""
    detector = refinedet.load(file)
    if detector.size[0] * detector.size[1] <= _LARGEST and (detector.preset.keep_top_k or 0) <= 1000:
        detector.detect(_IMAGE)
    if file.stem == _STATE:
        load_training_state(file)


@lru_cache(maxsize=2)
def _parse(data: bytes) -> tuple[str, int]:
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return data[8:end].decode(), end


def _split(data: bytes) -> tuple[Header, bytes]:
    text, end = _parse(data)
    return json.loads(text), data[end:]


def _damage_metadata(chance: random.Random, header: Header, values: bytes) -> tuple[Header, bytes]:
    """Another value in what the package itself writes; the configuration is a document within the document."""
    metadata = header["__metadata__"]
    if chance.random() < 0.1:
        metadata[_KEY] = damage_text(chance, metadata[_KEY].encode()).decode(errors="replace")
        return header, values
    document = json.loads(metadata[_KEY])
    if chance.random() < 0.2:
        document = damage_document(chance, document)
    else:
        document["config"] = json.dumps(_damage_config(chance, json.loads(document["config"])))
    metadata[_KEY] = json.dumps(document)
    return header, values


def _damage_config(chance: random.Random, config: Any) -> Any:
    if chance.random() < 0.3:
        return damage_document(chance, config)
    holder = chance.choice([config, config["preset"], config["preset"], config["preprocessing"]])
    key = chance.choice(list(holder))
    while isinstance(holder[key], (list, dict)) and holder[key] and chance.random() < 0.7:
        holder, key = holder[key], chance.choice(list(_keys(holder[key])))
    holder[key] = chance.choice([*VALUES, *_NUMBERS, *_NUMBERS, *_WORDS])
    return config


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _damage_table(chance: random.Random, header: Header, values: bytes) -> tuple[Header, bytes]:
    """Another type, shape, place or name of a tensor, such that safetensors itself mostly takes it."""
    names = [name for name in header if name != "__metadata__"]
    name, other = chance.sample(names, 2)
    entry = header[name]
    action = chance.randrange(7)
    if action == 0:
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["dtype"] = chance.choice(list(_BYTES))
        entry["shape"] = chance.choice([entry["shape"], [size // _BYTES[entry["dtype"]]]])
    elif action == 1:
        chance.shuffle(entry["shape"])
    elif action == 2:
        header[name], header[other] = header[other], entry
    elif action == 3:
        parts = name.split(".")
        parts.insert(chance.randrange(len(parts) + 1), chance.choice(("_orig_mod", "module", "x")))
        header[".".join(parts)] = header.pop(name)
    elif action == 4:
        header[chance.choice(("average.", "momentum.", "random.", "x.", "")) + name] = header.pop(name)
    elif action == 5:
        shape = [0, chance.choice((0, 1, 2**31, 2**63 - 1, 2**64))]
        header[chance.choice((name, f"{name}.x"))] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    else:
        header[name] = damage_document(chance, entry)
    return header, values


def _damage_values(chance: random.Random, header: Header, values: bytes) -> tuple[Header, bytes]:
    """One value, or all, of a tensor: not finite, far too large, below zero."""
    entry = header[chance.choice([name for name in header if name != "__metadata__"])]
    start, end = entry["data_offsets"]
    dtype = {"F16": np.float16, "F32": np.float32}.get(entry["dtype"], np.uint8)
    content = np.frombuffer(values, np.uint8).copy()
    tensor = content[start:end].view(dtype)
    value = chance.choice((np.nan, np.inf, -np.inf, -1, 0, 60000, 1e-7))
    with np.errstate(all="ignore"):
        value = np.array(value).astype(dtype)
    if len(tensor):
        tensor[slice(None) if chance.random() < 0.3 else chance.randrange(len(tensor))] = value
    return header, content.tobytes()


def memory(size: int) -> int:
    """The bar of issue 12."""
    return 2 * size + 300 * MEBIBYTE


TARGET = Target("checkpoints", make_seeds, mutate, read, count=20_000, seconds=2.0, memory=memory)
