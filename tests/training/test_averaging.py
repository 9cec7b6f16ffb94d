from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from binseg.training.optim import AVERAGE_WARMUP, MovingAverage


def learn(model: nn.Module, average: MovingAverage, values: list[float]) -> None:
    """Set the weights to each value as if an optimiser step had, and let the average follow."""
    for value in values:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(value)
        average.update()


def test_the_average_is_the_exponential_one() -> None:
    """After the first copy each step keeps min(decay, (1 + n) / (10 + n)) of the average."""
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, decay=0.2)
    values = [1.0, 2.0, 4.0, 8.0]
    learn(model, average, values)
    expected = values[0]
    for num, value in enumerate(values[1:], start=1):
        keep = min(0.2, (1 + num) / (AVERAGE_WARMUP + num))
        expected = keep * expected + (1 - keep) * value
    shipped = average.model.state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert shipped[name].tolist() == pytest.approx([expected] * 2), name
    assert shipped["num_batches_tracked"].item() == 8, "a count is copied, not averaged"


def test_accumulated_batches_are_one_step(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average moves once per optimiser step, however many batches that took."""
    moves: list[int] = []
    update = MovingAverage.update

    def note(self: MovingAverage) -> None:
        moves.append(1)
        update(self)

    monkeypatch.setattr(MovingAverage, "update", note)
    run(train__epochs=1, train__batch_size=1, train__accumulate=4, train__ema_decay=0.9)
    assert len(moves) == 3, "of nine batches"


def test_a_resumed_average_goes_on() -> None:
    """State saved half-way gives the average of the whole."""
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    whole, resumed = MovingAverage(one, decay=0.9), MovingAverage(other, decay=0.9)
    learn(one, whole, [1.0, 5.0])
    resumed.load_state_dict(whole.state_dict())
    for model, average in ((one, whole), (other, resumed)):
        with torch.no_grad():
            model.weight.fill_(3.0)
            model.bias.fill_(3.0)
        average.update()
    assert torch.equal(whole.model.weight, resumed.model.weight)  # type: ignore[arg-type]
