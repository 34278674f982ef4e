"""Batches: pure functions of (seed, step), whoever loads them."""

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import islice
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
import pytest
import torch
from support.synthetic import make_coco, make_voc
from torch.utils.data import DataLoader, Dataset

from refinedet.data import AugmentConfig, COCODataset, TrainAugment, TrainLoader, VOCDataset
from refinedet.data.loader import _start_worker, collate
from refinedet.errors import DataError, InputError
from refinedet.preprocessing import Preprocessing
from refinedet.records import Batch, Sample, Targets

COUNT = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> VOCDataset:
    return VOCDataset(make_voc(tmp_path_factory.mktemp("voc"), {"train": COUNT}), "train")


def loader(dataset, batch_size: int = 3, **options) -> TrainLoader:
    return TrainLoader(dataset, TrainAugment((64, 128), Preprocessing()), batch_size, **options)


def assert_equal(one: Batch, two: Batch) -> None:
    assert one.paths == two.paths
    assert torch.equal(one.images, two.images)
    for first, second in zip(one.targets, two.targets, strict=True):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)


def differs(one: Batch, two: Batch) -> bool:
    return one.paths != two.paths or not torch.equal(one.images, two.images)


def test_shapes_and_types(dataset):
    batch = next(loader(dataset, 4).iterate())
    assert isinstance(batch, Batch)
    assert isinstance(batch.targets, Targets)
    assert batch.images.shape == (4, 3, 64, 128)
    boxes, labels, offsets = batch.targets
    assert (boxes.dtype, labels.dtype, offsets.dtype) == (torch.float32, torch.int64, torch.int64)
    assert offsets.shape == (5,)
    assert offsets[0] == 0
    assert (offsets.diff() >= 0).all()
    assert offsets[-1] == len(boxes) == len(labels)
    assert isinstance(batch.paths, tuple)
    assert all(Path(path).is_file() for path in batch.paths)


def test_an_epoch_is_shuffled_once(dataset, monkeypatch):
    """A permutation of all of COCO takes milliseconds, and every sample needs its place in it."""
    seeds = []
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: (seeds.append(tuple(seed)), make(seed))[1])
    list(islice(loader(dataset).iterate(), 4))  # 12 samples of 7
    assert [seed for seed in seeds if len(seed) == 2] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("batch_size", [1, 3, COUNT, 10])
def test_every_epoch_has_every_image_once_even_when_batches_cross_it(dataset, batch_size):
    steps = 3 * COUNT // batch_size + 1
    paths = [path for batch in islice(loader(dataset, batch_size).iterate(), steps) for path in batch.paths]
    epochs = [paths[first : first + COUNT] for first in range(0, 3 * COUNT, COUNT)]
    assert all(len(set(epoch)) == COUNT for epoch in epochs[: len(paths) // COUNT])
    assert epochs[0] != epochs[1]


def test_a_data_set_smaller_than_the_batch(dataset):
    batch = next(loader(dataset, 2 * COUNT + 1).iterate())
    assert len(batch.paths) == 2 * COUNT + 1
    copies = [batch.images[i] for i, path in enumerate(batch.paths) if path == batch.paths[0]]
    assert not torch.equal(copies[0], copies[1])  # augmented afresh


def test_a_step_does_not_depend_on_where_iteration_began(dataset):
    whole = list(islice(loader(dataset, seed=5).iterate(0), 6))
    for start in (1, 4):
        resumed = loader(dataset, seed=5).iterate(start)
        for batch in whole[start:]:
            assert_equal(batch, next(resumed))


@pytest.mark.parametrize("start", [0, 3])
def test_workers_give_the_same_batches(dataset, start):
    alone = loader(dataset, seed=2).iterate(start)
    shared = loader(dataset, seed=2, workers=2).iterate(start)
    for _ in range(5):
        assert_equal(next(alone), next(shared))


def test_the_cache_gives_the_same_batches(dataset):
    plain, cached = loader(dataset).iterate(), loader(dataset, cache=True).iterate()
    for _ in range(4):
        assert_equal(next(plain), next(cached))


def test_seeds_differ(dataset):
    assert differs(next(loader(dataset, seed=1).iterate()), next(loader(dataset, seed=2).iterate()))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(dataset, workers):
    torch.manual_seed(3)
    np.random.seed(3)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    next(loader(dataset, workers=workers).iterate())
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_epoch_counts_passes_over_the_data(dataset):
    assert loader(dataset, 3).epoch(0) == 0
    assert loader(dataset, 3).epoch(14) == pytest.approx(6.0)


def crowded(tmp_path: Path) -> COCODataset:
    root = make_coco(tmp_path, {"train": 1}, objects=3)
    path = root / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    return COCODataset(root, "train")


@pytest.mark.parametrize(("use_difficult", "left"), [(True, 3), (False, 2)])
def test_difficult_boxes_can_be_left_out(tmp_path, use_difficult, left):
    plain = AugmentConfig(distort_probability=0, expand_probability=0, crop=False, mirror_probability=0)
    augment = TrainAugment((64, 64), Preprocessing(), plain)
    dataset = crowded(tmp_path)
    assert dataset[0].difficult.tolist() == [True, False, False]
    batch = next(TrainLoader(dataset, augment, 2, use_difficult=use_difficult).iterate())
    assert batch.targets.offsets.tolist() == [0, left, 2 * left]
    expected = torch.from_numpy(dataset[0].labels[3 - left :])
    assert torch.equal(batch.targets.labels[:left], expected)
    assert torch.equal(batch.targets.boxes[:left], torch.from_numpy(dataset[0].boxes[3 - left :]))


def test_images_without_objects(tmp_path):
    dataset = VOCDataset(make_voc(tmp_path, {"train": 2}, objects=0), "train", classes=["disc"])
    batch = next(loader(dataset, 2).iterate())
    assert batch.targets.boxes.shape == (0, 4)
    assert batch.targets.labels.shape == (0,)
    assert batch.targets.offsets.tolist() == [0, 0, 0]


def test_collate_lays_ground_truth_end_to_end():
    def item(count: int, value: float, path: str):
        return torch.full((3, 2, 2), value), np.full((count, 4), value, np.float32), np.full(count, int(value)), path

    batch = collate([item(2, 1.0, "a"), item(0, 2.0, "b"), item(1, 3.0, "c")])
    assert batch.targets.offsets.tolist() == [0, 2, 2, 3]
    assert batch.targets.labels.tolist() == [1, 1, 3]
    assert batch.targets.boxes[:, 0].tolist() == [1, 1, 3]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert batch.paths == ("a", "b", "c")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_one_clear_error(tmp_path, workers):
    dataset = VOCDataset(make_voc(tmp_path, {"train": 3}), "train")
    victim = dataset.records[1].path
    victim.write_bytes(victim.read_bytes()[:500])
    with pytest.raises(DataError) as caught:
        next(loader(dataset, 3, workers=workers).iterate())
    assert str(caught.value).startswith(f"{victim}: not an image that OpenCV can decode")
    assert "Traceback" not in str(caught.value)


class DyingDataset(VOCDataset):
    """Ends the process that reads it, as the kernel does when memory runs out."""

    def __getitem__(self, index: int) -> Sample:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_one_clear_error(tmp_path):
    dataset = DyingDataset(make_voc(tmp_path, {"train": 2}), "train")
    with pytest.raises(DataError, match=r"a data loading process died .*fewer workers \(0: none\)"):
        next(loader(dataset, 2, workers=1).iterate())


def test_only_the_main_process_ends_a_worker(dataset):
    """Slurm and systemd send SIGTERM to every process of a job, terminals to the group."""
    batches = loader(dataset, workers=1).iterate()
    next(batches)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "INT", "HUP"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    for _ in range(5):  # more than were loaded ahead
        next(batches)
    assert worker.is_alive()
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0


class FailingDataset(VOCDataset):
    """Fails as a library or the system may."""

    error: Exception

    def __getitem__(self, index: int) -> Sample:
        raise self.error


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one}\n{two}")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            MemoryError("Unable to allocate 3 GiB"),
            r"\(MemoryError: Unable to allocate 3 GiB\); free memory or /dev/shm",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            r"\(RuntimeError: DefaultCPUAllocator: .* tried\); free memory or /dev/shm",
        ),
        (KeyError("x"), r"\(KeyError: 'x'\); check its images"),
        (Unpicklable("a", "b"), r"\(Unpicklable: a\); check its images"),
        (StopIteration(), r"\(StopIteration: \); check its images"),
    ],
)
def test_any_error_while_loading_is_one_clear_error(tmp_path, workers, error, message):
    failing = FailingDataset(make_voc(tmp_path, {"train": 2}), "train")
    failing.error = error
    with pytest.raises(DataError, match=rf"^the batch of step 5 cannot be loaded {message}") as caught:
        next(loader(failing, 2, workers=workers).iterate(5))
    assert "\n" not in str(caught.value)


def test_full_shared_memory_is_one_clear_error(dataset, monkeypatch):
    """In a thread of the worker, where torch would find it, nobody would hear of it: the run would wait for ever."""

    def refuse(tensor):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(DataError, match=r"shared memory\(shm\).*; free memory or /dev/shm, or use fewer workers"):
        next(loader(dataset, workers=1).iterate())


def test_process_that_cannot_be_started_is_one_clear_error(dataset, monkeypatch):
    def refuse():
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(DataError, match=r"Cannot allocate memory\); free memory or /dev/shm, or use fewer workers"):
        next(loader(dataset, workers=1).iterate())
    gc.collect()
    assert not shown


def kill(process, number=signal.SIGKILL):
    """Kill a process and wait for its end, which is left for others to find."""
    os.kill(process.pid, number)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_death_of_a_worker_waits_for_the_next_batch(dataset):
    """Torch tells it from a signal handler: in the middle of a step, or of a file that is being written."""
    batches = loader(dataset, workers=2).iterate()
    next(batches)
    kill(multiprocessing.active_children()[0])  # here torch's handler would raise
    with pytest.raises(DataError, match=r"a data loading process died .*fewer workers \(0: none\)"):
        list(islice(batches, 20))


class Unasked(Dataset):
    """Hands a file over in Python's thread for that, to one who hangs up, as a main process does that is stopped."""

    def __len__(self):
        return 1

    def __getitem__(self, index: int) -> int:
        address, _ = resource_sharer.DupFd(0)._id
        Client(address, authkey=multiprocessing.current_process().authkey).close()
        time.sleep(0.5)
        return index


def test_worker_whose_batch_is_not_fetched_is_silent(capfd):
    assert list(DataLoader(Unasked(), batch_size=None, num_workers=1, worker_init_fn=_start_worker)) == [0]
    assert capfd.readouterr().err == ""


def test_deaths_in_other_loaders_are_torchs(dataset):
    """Before, beside and after ours."""
    ours = [loader(dataset, workers=1).iterate() for _ in range(2)]
    for batches in ours:
        next(batches)
    for batches in ours:  # not in the order of a stack
        batches.close()
    other = iter(DataLoader(range(100), num_workers=1))
    next(other)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="killed by signal"):
        kill(worker)


@pytest.mark.parametrize("workers", [0, 1])
def test_default_device_and_dtype_do_not_matter(dataset, workers):
    expected = next(loader(dataset, seed=3).iterate(2))
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        found = next(loader(dataset, seed=3, workers=workers).iterate(2))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert_equal(found, expected)


def test_parts_can_be_sent_to_another_process(dataset):
    """Where processes are spawned, data set and augmentation are pickled."""
    copy, augment = pickle.loads(pickle.dumps((dataset, TrainAugment((64, 128), Preprocessing()))))
    assert_equal(next(loader(dataset).iterate()), next(TrainLoader(copy, augment, 3).iterate()))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"seed": -1}])
def test_arguments_out_of_range(dataset, options):
    with pytest.raises(InputError, match=r"batch_size, workers, seed are .*; give at least 1, 0 and 0"):
        loader(dataset, **options)
