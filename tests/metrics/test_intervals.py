"""Bootstrap intervals: scipy's answer, known spreads, groups drawn whole, seeds."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from binseg.metrics import score_image, scores, summarise
from binseg.metrics.scores import bootstrap_interval, report_intervals
from binseg.types import Counts, Interval, Report


def known(found: Interval | None) -> Interval:
    assert found is not None
    return found


def test_interval_is_scipys() -> None:
    """Low and high agree with scipy's percentile bootstrap, within the noise of the draws."""
    values = np.random.default_rng(0).beta(8, 2, size=60)
    found = known(bootstrap_interval(values, num_resamples=8000))
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_interval_of_many_values_is_the_normal_one() -> None:
    """For many values the interval is the mean plus or minus 1.96 standard errors."""
    values = np.random.default_rng(0).normal(0.8, 0.1, size=2000)
    found = known(bootstrap_interval(values))
    error = values.std(ddof=1) / np.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_same_seed_same_interval() -> None:
    """One seed gives one interval; another seed, a slightly other one."""
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_draws_in_pieces_are_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding the memory changes no number."""
    values = np.random.default_rng(0).random(30)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(scores, "_CELLS", 100)
    assert bootstrap_interval(values) == whole


def test_groups_are_drawn_whole() -> None:
    """Copies of one image tell nothing new: ten copies of five values leave their interval."""
    values = np.array([0.2, 0.5, 0.6, 0.8, 0.9])
    groups = [f"patient {number}" for number in range(5) for _ in range(10)]
    copied = known(bootstrap_interval(np.repeat(values, 10), groups=groups))
    single = known(bootstrap_interval(values))
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))
    careless = known(bootstrap_interval(np.repeat(values, 10)))
    assert careless.high - careless.low < 0.5 * (copied.high - copied.low)


def test_groups_of_unequal_size_weigh_by_their_images() -> None:
    """The mean of a drawn data set is over its images, not over its groups."""
    values, groups = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    found = known(bootstrap_interval(values, groups=groups))
    assert (found.low, found.high) == (0.0, 1.0)
    drawn = {0.0, 0.75, 1.0}  # b b, a b, a a
    halves = known(bootstrap_interval(values, groups=groups, num_resamples=1))
    assert halves.low in drawn


@pytest.mark.parametrize(("values", "groups"), [([0.7], None), ([0.7, 0.9], ["a", "a"])])
def test_one_image_or_group_has_no_interval(values: list[float], groups: list[str] | None) -> None:
    """A single image, or group, says nothing of others: no interval, instead of one of width 0."""
    assert bootstrap_interval(values, groups=groups) is None


def test_coverage_is_ninety_five_percent() -> None:
    """Of many data sets of 100 images, 95% (+-3) have the true mean in their interval."""
    random = np.random.default_rng(0)
    values = random.beta(8, 2, size=(300, 100))
    found = [
        known(bootstrap_interval(row, num_resamples=200, seed=i)) for i, row in enumerate(values)
    ]
    assert np.mean([one.low <= 0.8 <= one.high for one in found]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
def test_coverage_over_a_thousand_data_sets() -> None:
    """The same at full length: 93-97% over 1,000 data sets with 1,000 draws each."""
    values = np.random.default_rng(1).beta(8, 2, size=(1000, 150))
    found = [known(bootstrap_interval(row, seed=i)) for i, row in enumerate(values)]
    assert 0.93 <= np.mean([one.low <= 0.8 <= one.high for one in found]) <= 0.97


def report(num: int = 40) -> Report:
    random = np.random.default_rng(0)
    images = []
    for number in range(num):
        tp, fp, fn, tn = random.integers(0, 50, size=4).tolist()
        counts = Counts(tp=tp, fp=fp, fn=fn, tn=tn + 1)
        images.append(score_image(f"image {number}", {"original": counts, "model": counts}))
    return summarise(images, title="t", bundle_id="b", split="val", threshold=0.5, border="none")


def test_every_headline_number_has_an_interval() -> None:
    """Mean and pooled scores at both sizes lie in their own intervals; means are as done alone."""
    scored = report()
    found = report_intervals(scored.images)
    for average, table in (("mean", scored.mean), ("pooled", scored.pooled)):
        for size, values in table.items():
            assert found[average][size].keys() == values.keys()
            for name, value in values.items():
                one = known(found[average][size][name])
                assert one.low < value < one.high
    alone = known(bootstrap_interval([one.scores["original"]["iou"] for one in scored.images]))
    together = known(found["mean"]["original"]["iou"])
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_pooled_interval_pools_each_draw() -> None:
    """Pooled intervals come from added-up counts of each drawn data set, as a slow loop finds."""
    scored = report(6)
    random = np.random.default_rng(5)
    counts = np.array([list(vars(one.counts["original"]).values()) for one in scored.images])
    drawn = counts[random.integers(6, size=(4000, 6))].sum(axis=1)
    tp, fp, fn, _ = drawn.T
    expected = np.quantile(2 * tp / (2 * tp + fp + fn), [0.025, 0.975])
    found = known(report_intervals(scored.images, num_resamples=4000)["pooled"]["original"]["dice"])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)


def test_groups_of_images_are_drawn_whole() -> None:
    """Where images have groups, whole ones are resampled; one group alone has no interval."""
    scored = report().images

    def interval(groups: list[str]) -> Interval | None:
        grouped = [replace(one, group=group) for one, group in zip(scored, groups, strict=True)]
        return report_intervals(grouped)["mean"]["original"]["dice"]

    by_tens = known(interval([str(number // 10) for number in range(len(scored))]))
    single = known(report_intervals(scored)["mean"]["original"]["dice"])
    assert (by_tens.low, by_tens.high) != (single.low, single.high)
    assert interval(["all"] * len(scored)) is None
