"""Batches for training, each a pure function of (seed, step), and for evaluation, in order."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from refinedet.data.augment import TrainAugment
from refinedet.data.dataset import DetectionDataset
from refinedet.errors import DataError, InputError, RefineDetError, is_out_of_memory
from refinedet.progress import track
from refinedet.records import Batch, Sample, Targets

_MEMORY_FIX = "free memory or /dev/shm, or use fewer workers (0: none)"


class TrainLoader:
    """Endless shuffled batches of augmented images.

    The samples of all steps form one sequence: epoch after epoch, each a fresh permutation of the data set, so that a
    batch may reach into the next epoch (and a data set may be smaller than a batch). Permutation and augmentation
    have generators of their own, seeded by (seed, epoch) and (seed, epoch, position): the batch of a step does not
    depend on what was loaded before it, nor on ``workers``, the number of loading processes (0: none).

    ``use_difficult`` false drops difficult boxes after augmentation, whose crops still see them (spec 7.1, 9.2).
    ``cache`` keeps the decoded images in memory (height x width x 3 bytes each); they are read before the first step.
    Images come in pinned memory where CUDA is available. What cannot be loaded, and a worker that dies, raises one
    RefineDetError, a DataError where the reason is not known better, and no sooner than the next batch is asked for.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        augment: TrainAugment,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        use_difficult: bool = True,
        cache: bool = False,
    ) -> None:
        if batch_size < 1 or workers < 0 or seed < 0:
            raise InputError(f"batch_size, workers, seed are {batch_size}, {workers}, {seed}; give at least 1, 0 and 0")
        self.dataset = dataset
        self.batch_size = batch_size
        self.workers = workers
        self._cache = cache
        self._samples: list[Sample] | None = None
        self._augment = augment
        self._seed = seed
        self._use_difficult = use_difficult

    def epoch(self, step: int) -> float:
        """How many times the data set has been seen before ``step``."""
        return step * self.batch_size / len(self.dataset)

    def fill_cache(self) -> None:
        """Read all images, where they are kept in memory: `iterate` does it otherwise, with the first batch."""
        if self._cache and self._samples is None:
            indices = track(range(len(self.dataset)), "reading images", "image")
            self._samples = [self.dataset[index] for index in indices]

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of start_step, start_step + 1, ... without end."""
        self.fill_cache()
        samples = self.dataset if self._samples is None else self._samples
        batches = _Batches(samples, self._augment, self.batch_size, self._seed, self._use_difficult)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=_StepsFrom(start_step),
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            # Without a generator of its own, the loader would draw a seed from torch's global one.
            generator=torch.Generator("cpu"),
        )
        for item in _alive(loader):
            if isinstance(item, RefineDetError):
                raise item
            # Pinning memory turns plain tuples into lists.
            yield item._replace(paths=tuple(item.paths))


class _StepsFrom:
    """Sampler of the endless steps from a first one on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


class _Batches(Dataset[Batch | RefineDetError]):
    """Step -> Batch. Errors are returned, not raised: the loader would wrap them in a worker's traceback."""

    def __init__(
        self,
        samples: DetectionDataset | Sequence[Sample],
        augment: TrainAugment,
        batch_size: int,
        seed: int,
        use_difficult: bool,
    ) -> None:
        self.samples = samples
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed
        self.use_difficult = use_difficult
        self._order: tuple[int, np.ndarray] | None = None  # epoch and its permutation; a new one takes milliseconds

    def __getitem__(self, step: int) -> Batch | RefineDetError:
        first = step * self.batch_size
        try:
            batch = collate([self._item(*divmod(first + i, len(self.samples))) for i in range(self.batch_size)])
            return batch if get_worker_info() is None else _share(batch)
        except RefineDetError as error:
            return error
        except Exception as error:
            return _explain(error, step)

    def _item(self, epoch: int, position: int) -> tuple[Tensor, np.ndarray, np.ndarray, str]:
        sample = self.samples[int(self._permutation(epoch)[position])]
        # Position + 1, because numpy takes (seed, epoch, 0) for the same seed as the permutation's (seed, epoch).
        rng = np.random.default_rng([self.seed, epoch, position + 1])
        image, boxes, labels, difficult = self.augment(sample, rng)
        if not self.use_difficult:
            boxes, labels = boxes[~difficult], labels[~difficult]
        return image, boxes, labels, sample.path

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        return self._order[1]


def collate(items: list[tuple[Tensor, np.ndarray, np.ndarray, str]]) -> Batch:
    """One Batch of (image [3,h,w], boxes [n,4], labels [n], path) items, their ground truth laid end to end."""
    images, boxes, labels, paths = zip(*items, strict=True)
    offsets = np.cumsum([0, *map(len, labels)])
    targets = Targets(
        torch.from_numpy(np.concatenate(boxes)),
        torch.from_numpy(np.concatenate(labels)),
        torch.from_numpy(offsets),
    )
    return Batch(torch.stack(images), targets, paths)


def _unchanged(item: object) -> object:
    return item


def _start_worker(_: int) -> None:
    # What asks to stop reaches the whole process group, or all processes of a job: the main process alone answers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _obey_parent_only()
    # Python's thread that hands tensors over shows an error when the main process has stopped asking for them.
    sys.excepthook = lambda *_: None
    # Each worker is one process of several: OpenCV's own threads would only compete.
    cv2.setNumThreads(0)


def _obey_parent_only() -> None:
    """Let SIGTERM end this process when its parent sends it, as the DataLoader does at the end, but nobody else."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _share(batch: Batch) -> Batch:
    """The batch in shared memory. Torch would put it there in a thread of the worker, whose errors nobody gets."""
    for tensor in (batch.images, *batch.targets):
        tensor.share_memory_()
    return batch


def _explain(error: Exception, step: int) -> RefineDetError:
    reason = f"the batch of step {step} cannot be loaded ({type(error).__name__}: {_first_line(error)})"
    if is_out_of_memory(error):
        return DataError(f"{reason}; {_MEMORY_FIX}")
    return DataError(f"{reason}; check its images and annotations")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _alive(loader: DataLoader[Batch | RefineDetError]) -> Iterator[Batch | RefineDetError]:
    """The batches of ``loader``; the death of a worker becomes an error that names the fix."""
    try:
        batches = _start(loader)
        with _deaths.held_back():
            try:
                while True:
                    with _deaths.raised():
                        batch = next(batches)
                    yield batch
            finally:
                del batches  # ends the workers, here where none of their ends is raised
    except (RuntimeError, OSError, EOFError, MemoryError) as error:  # the last three: fork, pipes, shared memory
        raise DataError(f"a data loading process died ({_first_line(error)}); {_MEMORY_FIX}") from error


def _start(loader: DataLoader[Batch | RefineDetError]) -> Iterator[Batch | RefineDetError]:
    """Start the loading processes, in which SIGTERM is held back from the first moment, see `_obey_parent_only`."""
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with torch.device("cpu"):  # not on torch's default device, where the loader would draw a seed
            return iter(loader)
    except Exception as error:
        # What torch has made so far ends here, in an error of its own that Python would show with its traceback.
        shown, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)
        sys.unraisablehook = shown
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


class _Deaths:
    """When the death of a worker is raised: as soon as its process waits for a batch, and no sooner.

    Torch raises it from a handler of SIGCHLD, wherever the main process is: in a half-made step, in a half-written
    file. While `held_back`, that handler is called in blocks of `raised` only.
    """

    def __init__(self) -> None:
        self._torchs: Callable[[int, FrameType | None], object] = lambda *_: None
        self._iterations = 0
        self._waiting = False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        handler = signal.getsignal(signal.SIGCHLD)
        # Other threads can set no handler, and get no signal either.
        if callable(handler) and handler != self._handle and threading.current_thread() is threading.main_thread():
            self._torchs = handler
            signal.signal(signal.SIGCHLD, self._handle)
        self._iterations += 1
        try:
            yield
        finally:
            self._iterations -= 1

    @contextmanager
    def raised(self) -> Iterator[None]:
        self._waiting = True
        try:
            self._torchs(signal.SIGCHLD, None)  # those that died meanwhile
            yield
        finally:
            self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._waiting or not self._iterations:
            self._torchs(number, frame)


_deaths = _Deaths()
