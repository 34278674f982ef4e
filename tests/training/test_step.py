"""One training step: it is taken whole and finite, or not at all."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from support.runs import tiny_recipe
from support.synthetic import CLASSES
from torch.utils._python_dispatch import TorchDispatchMode

from refinedet.errors import InputError, RefineDetError, is_out_of_memory
from refinedet.models import build
from refinedet.records import Batch, Targets
from refinedet.training.average import ModelEMA
from refinedet.training.step import Trainer, _broken, _largest, _sizes

CPU = torch.device("cpu")
PATHS = ("a.jpg", "b.jpg", "c.jpg")


def new_trainer(**settings):
    torch.manual_seed(0)
    recipe = tiny_recipe(train={"warmup_steps": 0, "ema_decay": 0.9, **settings})
    return Trainer(build("squeezenet", 64, classes=CLASSES, tcb_channels=16), recipe, CPU)


@pytest.fixture
def batch():
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    targets = Targets(torch.tensor([[0.1, 0.2, 0.6, 0.7]]).repeat(3, 1), torch.tensor([1, 2, 1]), torch.arange(4))
    return Batch(images, targets, PATHS)


def learned(trainer):
    """Copies of all that a step changes but batch statistics."""
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return weights, deepcopy(trainer.state({}).momentum), deepcopy(trainer.average.model.state_dict())


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def spoil_gradients(trainer, value, is_bad=lambda image: True):
    """Puts ``value`` in the gradient of each image that ``is_bad``; the loss stays as it is."""

    def hook(module, inputs, output):
        bad = torch.tensor([is_bad(image) for image in inputs[0]]).view(-1, 1, 1)
        output.odm_conf.register_hook(lambda gradient: torch.where(bad, value, gradient))

    return trainer.model.register_forward_hook(hook)


# what is not finite --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_gradient_that_is_not_finite_changes_nothing(batch, value, clip_norm):
    trainer = new_trainer(clip_norm=clip_norm)
    trainer.step(batch)
    before = learned(trainer)
    spoil_gradients(trainer, value)
    with pytest.raises(RefineDetError) as caught:
        trainer.step(batch)
    message = str(caught.value)
    assert message.startswith("the gradient of backbone.")
    assert "in step 1 is not finite, on every image of its batch (a.jpg, b.jpg, c.jpg)" in message
    assert "Lower train.lr" in message
    assert "The last saved state is kept" in message
    assert trainer.steps == 1
    assert_equal(learned(trainer), before)


def test_gradient_that_is_not_finite_names_the_image(batch):
    trainer = new_trainer()
    spoil_gradients(trainer, math.nan, lambda image: torch.equal(image, batch.images[1]))
    with pytest.raises(RefineDetError, match=r"in step 0 is not finite because of b\.jpg; check image and annotation"):
        trainer.step(batch)


def test_gradient_of_one_parameter_is_named(batch):
    trainer = new_trainer()
    name, parameter = list(trainer.model.named_parameters())[-1]
    parameter.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    with pytest.raises(RefineDetError, match=rf"^the gradient of {name} in step 0 is not finite"):
        trainer.step(batch)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_among_many_is_found(value):
    """Wherever it stands: vectorised code looks at the last few values on their own."""
    for size in (1, 2, 7, 8, 9, 16, 33, 64, 70):
        tensors = torch.ones(size, size)
        tensors.fill_diagonal_(value)
        assert not torch.stack(_largest(list(tensors))).isfinite().any()
    assert torch.stack(_largest([torch.full((100,), 3e38), torch.zeros(1)])).isfinite().all()


def test_what_overflows_a_norm_is_looked_at_again():
    values = [torch.full((100,), 3e38), torch.tensor([1.0, math.nan]), torch.ones(3), torch.tensor([-math.inf])]
    sizes = torch.stack(_sizes(values)).tolist()
    assert [math.isfinite(size) for size in sizes] == [False, False, True, False]
    assert _broken(values, sizes) == [False, True, False, True]


def test_large_gradient_is_a_gradient(batch):
    """Its norm overflows, its values do not."""
    trainer = new_trainer()
    parameter = trainer.model.backbone.features[0].bias
    parameter.register_hook(lambda gradient: torch.full_like(gradient, 3e37))
    trainer.step(batch)
    assert trainer.steps == 1


def test_infinite_weight_that_no_loss_shows_is_found(batch):
    """A ReLU hides it: the loss is finite."""
    trainer = new_trainer()
    trainer.step(batch)
    with torch.no_grad():
        trainer.model.backbone.features[0].bias[0] = -math.inf
    assert math.isfinite(trainer._losses(*trainer._to_device(batch)).total.item())
    with pytest.raises(RefineDetError, match=r"^at step 1 backbone\.features\.0\.bias hold values .*Lower train\.lr"):
        trainer.step(batch)
    assert trainer.steps == 1


@pytest.mark.parametrize("part", ["model", "momentum", "average"])
def test_state_that_is_not_finite_is_not_saved(batch, part):
    trainer = new_trainer()
    trainer.step(batch)
    next(iter(getattr(trainer.state({}), part).values()))[0, 0, 0, 0] = math.nan
    with pytest.raises(RefineDetError, match=r"^after 1 steps .*backbone.* hold values that are not finite"):
        trainer.state({})


def test_batch_statistics_are_watched():
    trainer = new_trainer()
    assert {name for name, t in trainer.model.state_dict().items() if t.is_floating_point()} == trainer._watched.keys()
    assert all(
        trainer._watched[name].data_ptr() == t.data_ptr()
        for name, t in trainer.model.state_dict().items()
        if name in trainer._watched
    )


class CountWaits(TorchDispatchMode):
    """Counts what makes a host wait for a GPU: values that Python looks at."""

    count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.count += operator is torch.ops.aten._local_scalar_dense.default
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_waits_once(batch, monkeypatch, scaled):
    """For one transfer of losses and of what is not finite; apart from the loss, whose number of rows is data."""
    trainer = new_trainer(clip_norm=1.0)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
    trainer.step(batch)
    with CountWaits() as of_loss:
        trainer._losses(*trainer._to_device(batch))
    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(self.shape) or tolist(self))
    with CountWaits() as of_step:
        trainer.step(batch)
    assert of_step.count == of_loss.count
    assert len(lists) == 1


# the scale of the loss -----------------------------------------------------------------------------------------------


def test_overflow_of_the_scaled_loss_is_no_step(batch, monkeypatch):
    """The batch is tried again until it fits; schedule, average and count see one step."""
    updates = []
    update = ModelEMA.update
    monkeypatch.setattr(ModelEMA, "update", lambda *a, **k: updates.append(a[2]) or update(*a, **k))
    plain, scaled = new_trainer(), new_trainer()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    rates = [(t.learning_rate, t.step(batch), t.learning_rate) for t in (plain, scaled)]
    assert scaled.scaler.get_scale() < 2.0**126  # it did overflow
    assert rates[0] == rates[1]
    assert (scaled.steps, updates) == (1, [1, 1])
    for ours, theirs in zip(learned(scaled), learned(plain), strict=True):
        for name in plain._parameters:  # batch statistics see the batch again
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-7)


def test_endless_overflow_is_an_error(batch):
    trainer = new_trainer()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**3)
    before = learned(trainer)
    calls = []
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    spoil_gradients(trainer, math.inf)
    with pytest.raises(RefineDetError, match=r"^the gradient of .* in step 0 is not finite"):
        trainer.step(batch)
    assert len(calls) <= 3 + 2 + 1 + len(PATHS)  # trials, and the images one by one
    assert trainer.steps == 0
    assert_equal(learned(trainer), before)


# refusals ------------------------------------------------------------------------------------------------------------


def test_empty_batch(batch):
    nothing = Targets(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="the batch of step 0 has no image"):
        new_trainer().step(Batch(batch.images[:0], nothing, ()))


def test_too_little_memory_is_one_error(batch):
    trainer = new_trainer()

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB")

    trainer.model.register_forward_hook(fail)
    with pytest.raises(RefineDetError, match=r"^step 0 needs more memory than cpu has for 3 images of 64 x 64 pixels"):
        trainer.step(batch)


@pytest.mark.parametrize("take", [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50), lambda: bytearray(1 << 62)])
def test_refused_memory_is_recognised(take):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        take()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_other_errors_of_a_step_are_not_hidden(batch):
    trainer = new_trainer()
    trainer.model.register_forward_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        trainer.step(batch)
