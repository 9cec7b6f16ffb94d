"""What a run says of its memory, and what it says where there is too little."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from binseg.config.recipe import InputConfig, ModelConfig, Recipe, TrainConfig
from binseg.errors import TrainingError
from binseg.models import create_model
from binseg.training import devices
from binseg.training.devices import available_memory, estimate_memory

RECIPE = Recipe(
    input=InputConfig(size=32),
    model=ModelConfig(name="unet-compact", options={"width": 4}),
    train=TrainConfig(batch_size=2),
)


def test_a_run_begins_with_what_it_needs(run: Callable[..., Any], listen: Any) -> None:
    """The first line tells the estimate, and what is free."""
    listener = listen()
    run(train__epochs=1, progress=listener)
    assert listener.lines[0].startswith("needs about ")
    assert listener.lines[0].endswith("of memory that are free")


def test_a_batch_that_can_not_fit_is_refused_with_one_that_does(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before a step is made, a smaller batch with accumulation is proposed."""
    monkeypatch.setattr(devices, "available_memory", lambda device: 150_000)
    with pytest.raises(TrainingError, match=r"batch_size to \d+ and train\.accumulate to \d+"):
        run(train__batch_size=256)
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_memory_that_runs_out_proposes_half_the_batch(
    problem: Exception, run: Callable[..., Any], network: Callable[..., nn.Module]
) -> None:
    """Whatever the allocator raises, one line proposes what gives nearly the same run."""
    model = network()

    def fail(module: nn.Module, inputs: Any) -> None:
        if module.training:
            raise problem

    model.register_forward_pre_hook(fail)
    with pytest.raises(TrainingError, match=r"batches of 4; set train\.batch_size to 2 and "):
        run(model=model)


def test_half_an_image_is_not_proposed(recipe: Callable[..., Any]) -> None:
    """A batch of one can only become smaller by its size."""
    told = devices.lacking_memory(recipe(train__batch_size=1), torch.device("cpu"))
    assert told.endswith("set input.size below 16")


def test_where_not_even_one_input_fits_that_is_said(recipe: Callable[..., Any]) -> None:
    """No smaller batch helps."""
    told = devices.lacking_memory(recipe(), torch.device("cpu"), fits=0)
    assert told.startswith("the memory is too small for even one input of 16x16; lower input.size")


def test_files_that_were_read_leave_their_room_in_a_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page cache counts as used in a control group, and is given back when it is needed."""
    files = {
        "memory.max": "1000",
        "memory.current": "900",
        "memory.stat": "anon 300\ninactive_file 400\nactive_file 200\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: files[self.name])
    assert devices._container_limit() == 700


@pytest.mark.parametrize("name", ["unet-compact", "unet-small", "resnet34-unet"])
def test_memory_grows_with_the_area_and_the_weights(name: str) -> None:
    """Maps are counted by the pixel, weights once; neither weights nor statistics change."""
    model = create_model(**ModelConfig(name=name, options={"width": 8}).arguments()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = estimate_memory(model, RECIPE, size=64)
    large = estimate_memory(model, RECIPE, size=128)
    assert large.per_input == pytest.approx(4 * small.per_input, rel=0.1)
    weights = 4 * sum(one.numel() for one in model.parameters())
    assert small.fixed == pytest.approx(4 * weights, rel=0.01)  # with gradients, two moments
    assert small.total == small.fixed + 2 * small.per_input
    assert small.largest_batch(small.fixed + 5 * small.per_input) == 5
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_estimate_counts_what_autograd_keeps() -> None:
    """One convolution and a sigmoid keep their input and output: known to the byte."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
    estimate = estimate_memory(plain, RECIPE, size=16)
    kept = 4 * 16 * 16 * (3 + 4)
    assert estimate.per_input == round(2 * kept)


def test_free_memory_is_less_than_all() -> None:
    """The system's own figure, in bytes."""
    free = available_memory(torch.device("cpu"))
    assert free is None or 10**7 < free < 2**50
