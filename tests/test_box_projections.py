"""The shortest move onto a hyperplane within a box, against the solvers of SciPy."""

import numpy as np
import pytest
from keras import ops
from scipy.optimize import linprog, minimize

from kerasdef import norms
from kerasdef.attacks.parts.box_projections import project

D = 7
BOUNDS = (0.0, 1.0)


def tensor(value):
    return ops.convert_to_tensor(np.asarray(value, dtype="float32"))


def moves(norm, x, w, way):
    return ops.convert_to_numpy(project(norms.get(norm), tensor(x), tensor(w), tensor(way), BOUNDS)).astype("float64")


def size(norm, delta):
    return ops.convert_to_numpy(norms.get(norm).size(tensor(delta)))


def cases(n=40, seed=0):
    """Points with features at the bounds, weights of 0 and of all scales, ways up and down that the box allows."""
    rng = np.random.default_rng(seed)
    x, w = rng.uniform(0, 1, (n, D)), rng.normal(size=(n, D))
    x[:, :2] = np.round(x[:, :2])
    w[::5, 3] = 0.0
    w[::3] *= 1e-6
    up, down = np.where(w > 0, w * (1 - x), -w * x).sum(axis=1), np.where(w > 0, w * x, -w * (1 - x)).sum(axis=1)
    way = rng.uniform(0.01, 0.97, n) * np.where(np.arange(n) % 4, up, -down)
    return x, w, way


def shortest(norm, x, w, way):
    """Length of the best move, by linear programming or sequential least squares."""
    box, scale = list(zip(-x, 1 - x, strict=True)), np.abs(w).max()
    w, way = w / scale, way / scale
    if norm == "linf":  # minimize t with |move| <= t
        eye, one = np.eye(D), np.ones((D, 1))
        above = np.block([[eye, -one], [-eye, -one]])
        answer = linprog(
            np.r_[np.zeros(D), 1.0],
            A_ub=above,
            b_ub=np.zeros(2 * D),
            A_eq=np.r_[w, 0.0][None],
            b_eq=[way],
            bounds=[*box, (0, None)],
        )
        return answer.fun
    if norm == "l1":  # ways up and down are variables of their own
        parts = [(0, high) for _, high in box] + [(0, -low) for low, _ in box]
        return linprog(np.ones(2 * D), A_eq=np.r_[w, -w][None], b_eq=[way], bounds=parts).fun
    plane = {"type": "eq", "fun": lambda v: w @ v - way, "jac": lambda v: w}
    answer = minimize(
        lambda v: v @ v,
        np.zeros(D),
        jac=lambda v: 2 * v,
        bounds=box,
        constraints=plane,
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-14},
    )
    return np.sqrt(answer.fun)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_move_reaches_the_plane_stays_in_the_box_and_is_the_shortest(norm):
    x, w, way = cases()
    found = moves(norm, x, w, way)
    np.testing.assert_allclose(np.sum(w * found, axis=1), way, rtol=3e-5)  # the passes end at 1e-5
    assert (x + found).min() >= -1e-6  # float32
    assert (x + found).max() <= 1 + 1e-6
    best = [shortest(norm, *case) for case in zip(x, w, way, strict=True)]
    np.testing.assert_allclose(size(norm, found), best, rtol=1e-4)  # SLSQP


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_beyond_the_box_takes_everything_to_the_bounds(norm):
    x, w = np.float32([[0.2, 0.7, 0.4]]), np.float32([[1.0, -0.5, 0.25]])
    found = x + moves(norm, x, w, [100.0])
    np.testing.assert_allclose(found, [[1.0, 0.0, 1.0]], atol=1e-4)  # the passes end at 1e-5 of the way


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("way", [0.0, 1.0, -3e30])
def test_a_flat_or_a_reached_plane_moves_nothing_and_makes_no_nan(norm, way):
    x = np.full((2, D), 0.5)
    w = np.stack([np.zeros(D), np.zeros(D) if way else np.ones(D)])
    np.testing.assert_array_equal(moves(norm, x, w, [way, way]), np.zeros((2, D)))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_row_does_not_depend_on_its_batch(norm):
    x, w, way = cases(12)
    whole = moves(norm, x, w, way)
    alone = np.concatenate([moves(norm, x[i : i + 1], w[i : i + 1], way[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(whole, alone, atol=1e-6)  # sums in another order


def test_breakpoints_that_double_are_all_passed():
    """Newton's method needs one pass for each of these: features stop one after the other, ever later."""
    room = 2.0 ** -np.arange(20.0)[::-1]
    weight = 4.0 ** np.arange(20.0)[::-1]
    full = np.sum(room * weight)
    x = (1 - room)[None]
    found = moves("linf", x, weight[None], [0.999999 * full])
    assert np.sum(weight * found[0]) >= 0.9999 * 0.999999 * full  # float32: 1 - room is rounded
