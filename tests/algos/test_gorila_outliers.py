"""Losses far above the mean, whose gradients Gorila does not send."""

import numpy as np
import pytest
from gorila_parts import make_parts, with_algo

from a3c_bench.core.outliers import LossWatch


def test_losses_far_above_the_mean_are_outliers() -> None:
    watch = LossWatch(3.0)
    rng = np.random.default_rng(0)
    assert not watch.is_outlier(1e6)  # nothing is known yet
    watch = LossWatch(3.0)
    assert not any(watch.is_outlier(float(loss)) for loss in rng.uniform(0.0, 2.0, 500))  # sd 0.58: up to 1 + 1.73
    assert not watch.is_outlier(2.6)
    assert watch.is_outlier(3.0)
    assert not watch.is_outlier(-5.0)  # below the mean is no reason
    never = LossWatch(None)
    assert not any(never.is_outlier(loss) for loss in [1.0] * 200 + [1e9])


def test_what_is_usual_changes() -> None:
    watch = LossWatch(3.0, decay=0.9)
    for _ in range(200):
        watch.is_outlier(1.0)
    assert watch.is_outlier(10.0)
    for _ in range(100):
        watch.is_outlier(10.0)
    assert not watch.is_outlier(10.0)


def test_a_gradient_of_an_outlier_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts(with_algo(n_learners=1))
    parts.run(10)
    (bundle,) = parts.bundles
    learner = bundle.learner
    assert learner is not None
    bundle.notes.report()
    losses: list[float] = []
    monkeypatch.setattr(learner.watch, "is_outlier", lambda loss: losses.append(loss) or True)
    assert learner.transport.room(0.0)
    learner.learn()
    assert not parts.shared.server.waiting.any()
    assert learner.transport.room(0.0)
    report = bundle.notes.report()
    assert report.ratios["discarded_outlier_share"] == (1, 1)
    (figures,) = report.figures
    assert figures["loss"].tolist() == pytest.approx(losses)  # it is in the record all the same
