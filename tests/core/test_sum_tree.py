"""The sum tree against a plain list; whole numbers as weights, so that sums are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3c_bench.core.sum_tree import FAN_OUT, SumTree

Change = list[tuple[int, int]]  # of one batch: (leaf, weight)


def naive_find(weights: list[float], mass: float) -> int:
    """The first leaf at which the weights up to and with it exceed the mass."""
    total = 0.0
    for leaf, weight in enumerate(weights):
        total += weight
        if total > mass:
            return leaf
    raise AssertionError(f"{mass} is more than all of {total}")


@st.composite
def changes(draw: st.DrawFn) -> tuple[int, list[Change]]:
    """The size of a tree of 1 to 3 levels, and batches of changes, in which a leaf may come twice."""
    n_leaves = draw(st.sampled_from([1, 2, FAN_OUT - 1, FAN_OUT, FAN_OUT + 1, 100, FAN_OUT**2, FAN_OUT**2 + 7]))
    change = st.tuples(st.integers(0, n_leaves - 1), st.sampled_from([0, 0, 1, 2, 5, 1000]))
    return n_leaves, draw(st.lists(st.lists(change, max_size=20), min_size=1, max_size=6))


@given(tree_and_changes=changes())
@settings(deadline=None, max_examples=60)
def test_against_a_list(tree_and_changes: tuple[int, list[Change]]) -> None:
    n_leaves, batches = tree_and_changes
    tree, weights = SumTree(n_leaves), [0.0] * n_leaves
    for batch in batches:
        leaves = np.array([leaf for leaf, _ in batch], dtype=np.int64)
        tree[leaves] = np.array([float(weight) for _, weight in batch])
        for leaf, weight in batch:
            weights[leaf] = float(weight)
        assert tree[np.arange(n_leaves)].tolist() == weights
        assert tree.total == sum(weights)
        if tree.total > 0:
            edges = np.unique(np.cumsum(weights))[:-1]
            masses = np.concatenate([[0.0], edges, edges - 0.5, np.linspace(0.0, tree.total, 20, endpoint=False)])
            masses = masses[masses >= 0.0]
            assert tree.find(masses).tolist() == [naive_find(weights, mass) for mass in masses.tolist()]


def test_rounding_never_leads_to_a_leaf_of_weight_0() -> None:
    rng = np.random.default_rng(0)
    tree, n_leaves = SumTree(5000), 5000
    weights = np.where(rng.random(n_leaves) < 0.02, rng.random(n_leaves) * 10.0 ** rng.integers(-12, 6, n_leaves), 0.0)
    tree[np.arange(n_leaves)] = weights
    assert tree.total == pytest.approx(weights.sum())
    edges = weights.cumsum()
    at_edges = np.concatenate([edges, np.nextafter(edges, 0.0), [tree.total, np.nextafter(tree.total, 0.0)]])
    assert (tree[tree.find(at_edges)] > 0.0).all()
    assert (tree[tree.find(rng.random(20_000) * tree.total)] > 0.0).all()


def test_a_weight_for_all_and_an_empty_batch() -> None:
    tree = SumTree(40)
    tree[np.array([3, 39])] = 2.0
    tree[np.array([], dtype=np.int64)] = 5.0
    assert tree.total == 4.0
    assert tree.find(np.array([0.0, 1.9, 2.0, 3.9])).tolist() == [3, 3, 39, 39]
    assert tree[np.array([[3, 4], [38, 39]])].tolist() == [[2.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize("n_leaves", [1, 32, 33, 1024, 1025, 1_000_000])
def test_bytes(n_leaves: int) -> None:
    tree = SumTree(n_leaves)
    assert SumTree.bytes_needed(n_leaves) == sum(level.nbytes for level in tree._levels)
    assert len(tree._levels) == {1: 1, 32: 1, 33: 2, 1024: 2, 1025: 3, 1_000_000: 4}[n_leaves]
