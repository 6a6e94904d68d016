"""Fingerprints do not depend on the order of the entries, and change with their values."""

import numpy as np
import pytest

from obscura_jax.parity.fingerprint import _SORTED, close, fingerprint

DRAWN = np.random.default_rng(0)
SMALL, LARGE = DRAWN.normal(size=(15, 7)), DRAWN.normal(size=_SORTED + 17)
SIZES = pytest.mark.parametrize("x", [SMALL, LARGE], ids=["small", "large"])
TOLERANCE = 1e-9


def same(x, y, tolerance=TOLERANCE):
    return close(fingerprint(np.asarray(x)), fingerprint(np.asarray(y)), tolerance)


@SIZES
def test_the_order_of_the_entries_does_not_count(x):
    assert same(x, DRAWN.permutation(x.reshape(-1)))
    assert not same(x, DRAWN.permutation(x.reshape(-1)) * (1 + 1e-8))


@SIZES
def test_one_other_entry_is_seen(x):
    y = x.reshape(-1).copy()
    y[3] += 1e-3
    assert not same(x, y)
    y[3] = x.reshape(-1)[3] * (1 + 1e-13)
    assert same(x, y)


@SIZES
@pytest.mark.parametrize("change", [1e-12, 1e-5])
def test_the_tolerance_is_relative(x, change):
    for scale in (1e-9, 1.0, 1e9):
        noise = change * scale * DRAWN.uniform(-1, 1, x.shape)
        assert same(x * scale, x * scale + noise) is (change < TOLERANCE)


@SIZES
def test_a_sign_counts(x):
    assert not same(x, -x)
    assert not same(x, np.abs(x))


@SIZES
def test_copies_and_padding_do_not_count(x):
    flat = x.reshape(-1)
    assert same(flat, np.repeat(flat, 3))
    padded = np.concatenate([flat, np.zeros(9), np.full(5, -np.inf), np.full(4, -3e38)])
    assert same(flat, padded)
    assert not same(flat, np.concatenate([flat, np.ones(9)]))
    assert not same(flat, np.concatenate([flat, flat[:9]]))


@pytest.mark.parametrize(
    ("x", "kind", "telling"),
    [
        (SMALL, "numbers", True),
        (SMALL.reshape(-1)[:3], "numbers", False),
        (np.full((3, 5), 0.25), "constant", False),
        (np.array([0.0, -np.inf, 0.0, -np.inf]), "empty", False),
        (np.array([1.0, 0.0, 1.0, 1.0]), "two", False),
        (np.array([2.0, 7.0, 7.0, 2.0]), "two", False),
        (np.array([True, False, False]), "two", False),
        (np.arange(7), "numbers", True),
        (np.zeros((0, 3)), "empty", False),
        (np.zeros(5), "empty", False),
    ],
)
def test_kinds(x, kind, telling):
    found = fingerprint(x)
    assert (found.kind, found.telling) == (kind, telling)
    assert close(found, found, TOLERANCE)


def test_constants_and_masks_are_compared():
    assert same(np.full(5, 0.25), np.full((2, 3), 0.25))
    assert not same(np.full(5, 0.25), np.full(5, 0.25 + 1e-6))
    mask = np.array([0.0, 0.0, 1.0, 0.0])
    assert same(mask, mask == 0)  # the same share, whatever the values
    assert not same(mask, np.array([0.0, 1.0, 1.0, 0.0]))


def test_entries_that_are_not_finite_are_counted():
    x = SMALL.copy()
    x[0, :3], x[1, 1] = np.nan, np.inf
    found = fingerprint(x)
    assert (found.nan, found.infinite, found.count) == (3, 1, x.size - 4)
    assert (fingerprint(SMALL).nan, fingerprint(SMALL).infinite) == (0, 0)
    assert fingerprint(np.full(3, np.nan)).nan == 3
