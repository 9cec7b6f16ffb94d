import pytest
import torch
from torch.optim import lr_scheduler

from binseg.config.recipe import ScheduleConfig
from binseg.training.optim import Schedule

EPOCHS, STEPS = 6, 5


def optimizer(kind: str = "adamw") -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    if kind == "sgd":
        return torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    return torch.optim.AdamW(weights, lr=0.1)


def schedule(moved: torch.optim.Optimizer, **config: object) -> Schedule:
    given = ScheduleConfig.model_validate(config)
    return Schedule(moved, given, epochs=EPOCHS, steps_per_epoch=STEPS)


def rates(moved: torch.optim.Optimizer, scheduler: object, num: int) -> list[float]:
    """The rates at which `num` steps are taken."""
    seen = []
    for _ in range(num):
        seen.append(float(moved.param_groups[0]["lr"]))
        moved.step()
        scheduler.step()  # type: ignore[attr-defined]
    return seen


def test_cosine_by_epoch_is_torchs() -> None:
    """Report D's cosine, per epoch and to 0, is CosineAnnealingLR."""
    ours, theirs = optimizer(), optimizer()
    got = rates(ours, schedule(ours, name="cosine", per_step=False), EPOCHS * STEPS)
    referee = lr_scheduler.CosineAnnealingLR(theirs, T_max=EPOCHS)
    assert got[::STEPS] == pytest.approx(rates(theirs, referee, EPOCHS))
    assert got[STEPS - 1] == got[0], "the rate stays within an epoch"


def test_cosine_by_step_is_torchs() -> None:
    """The smooth cosine is CosineAnnealingLR over all steps."""
    ours, theirs = optimizer(), optimizer()
    got = rates(ours, schedule(ours, name="cosine"), EPOCHS * STEPS)
    referee = lr_scheduler.CosineAnnealingLR(theirs, T_max=EPOCHS * STEPS)
    assert got == pytest.approx(rates(theirs, referee, EPOCHS * STEPS))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_onecycle_is_torchs(kind: str) -> None:
    """One-cycle is OneCycleLR: the rate, and the momentum that moves against it."""
    ours, theirs = optimizer(kind), optimizer(kind)
    our_schedule = schedule(ours, name="onecycle", rise=0.3)
    referee = lr_scheduler.OneCycleLR(
        theirs, max_lr=0.1, total_steps=EPOCHS * STEPS + 1, pct_start=0.3
    )
    del referee
    referee = lr_scheduler.OneCycleLR(theirs, max_lr=0.1, total_steps=EPOCHS * STEPS, pct_start=0.3)
    for step in range(EPOCHS * STEPS):
        for moved in (ours, theirs):
            moved.step()
        one, other = ours.param_groups[0], theirs.param_groups[0]
        assert one["lr"] == pytest.approx(other["lr"]), step
        if kind == "sgd":
            assert one["momentum"] == pytest.approx(other["momentum"]), step
        else:
            assert one["betas"] == pytest.approx(other["betas"]), step
        our_schedule.step()
        if step < EPOCHS * STEPS - 1:
            referee.step()


def test_step_and_multistep_are_torchs() -> None:
    """Drops every n epochs, or at given epochs, are StepLR and MultiStepLR."""
    ours, theirs = optimizer(), optimizer()
    got = rates(ours, schedule(ours, name="step", step_epochs=2), EPOCHS * STEPS)
    assert got[::STEPS] == pytest.approx(rates(theirs, lr_scheduler.StepLR(theirs, 2), EPOCHS))
    ours, theirs = optimizer(), optimizer()
    got = rates(ours, schedule(ours, name="multistep", milestones=[1, 4]), EPOCHS * STEPS)
    referee = lr_scheduler.MultiStepLR(theirs, [1, 4])
    assert got[::STEPS] == pytest.approx(rates(theirs, referee, EPOCHS))


def test_plateau_is_torchs() -> None:
    """Plateau lowers the rate after the same epochs as ReduceLROnPlateau."""
    losses = [1.0, 0.9, 0.95, 0.9, 0.92, 0.89999, 0.8, 0.81, 0.82, 0.83, 0.84]
    ours, theirs = optimizer(), optimizer()
    scheduler = schedule(ours, name="plateau", factor=0.5, patience=2)
    referee = lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=2)
    seen = []
    for loss in losses:
        ours.step()
        scheduler.step()
        scheduler.observe(loss)
        theirs.step()
        referee.step(loss)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
        seen.append(ours.param_groups[0]["lr"])
    assert len(set(seen)) == 3, "two drops"


@pytest.mark.parametrize("name", ["none", "cosine", "onecycle", "step", "multistep", "plateau"])
def test_warmup_goes_with_every_schedule(name: str) -> None:
    """Warm-up rises in a line from 1 % of the rate, and then the schedule begins."""
    moved = optimizer()
    got = rates(moved, schedule(moved, name=name, warmup_epochs=2), EPOCHS * STEPS)
    assert got[0] == pytest.approx(0.001)
    assert got[5] == pytest.approx(0.1 * (0.01 + 0.99 * 0.5))
    assert got[10] == pytest.approx(0.1 / 25 if name == "onecycle" else 0.1)


def test_a_schedule_goes_on_from_its_state() -> None:
    """A state saved half-way gives the same rates as the uninterrupted schedule."""
    moved = optimizer()
    whole = schedule(moved, name="plateau", patience=0, warmup_epochs=1)
    rates(moved, whole, STEPS)
    whole.observe(1.0)
    whole.observe(2.0)
    other = optimizer()
    resumed = schedule(other, name="plateau", patience=0, warmup_epochs=1)
    resumed.load_state_dict(whole.state_dict())
    other.load_state_dict(moved.state_dict())
    assert rates(other, resumed, STEPS) == rates(moved, whole, STEPS)
    assert other.param_groups[0]["lr"] == pytest.approx(0.01)
