"""Limits of time and memory; benchmarks/measure_analysis.py prints the numbers."""

import pytest

from benchmarks.measure_analysis import measure_drawing, measure_loading


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_runs_of_ten_thousand_rows_are_loaded_in_half_a_minute():
    seconds, mib = measure_loading(1000, 10_000)
    assert seconds < 30.0
    assert mib < 300.0  # a run's tables are let go of before the next one's are read


@pytest.mark.slow
def test_fifteen_long_runs_are_drawn_in_five_seconds():
    assert measure_drawing(10_000) < 5.0


def test_the_measurement_measures_what_it_says():
    seconds, _ = measure_loading(12, 50)
    assert 0.0 < seconds < 30.0
    assert 0.0 < measure_drawing(200) < 60.0
