"""Budget solvers: the optimum of brute force, never above the budget, and what an infeasible one is told."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest

from diffcache import ConfigError
from diffcache.learn.budget import Problem, relax, solve, solve_with_ages


def drawn(seed, cells=6, levels=4, quarters=False):
    """Signed costs, weights that grow with the level, and a budget within the feasible range."""
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(cells, levels))
    weight = np.sort(rng.random((cells, levels)), 1)
    if quarters:
        weight = np.broadcast_to(np.arange(levels) / (levels - 1), (cells, levels)) * rng.integers(1, 4, (cells, 1))
    low, high = weight.min(1).sum(), weight.max(1).sum()
    return Problem.of(cost, weight, low + (high - low) * rng.uniform(0.05, 0.9))


def brute_force(problem):
    cells, levels = problem.cost.shape
    found = (problem.total(np.array(choice)) for choice in product(range(levels), repeat=cells))
    return min(cost for cost, weight in found if weight <= problem.budget * (1 + 1e-9))


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_brute_force_where_weights_share_a_unit(seed):
    problem = drawn(seed, quarters=True)
    cost, weight = problem.total(solve(problem))
    assert cost == pytest.approx(brute_force(problem), abs=1e-9)
    assert weight <= problem.budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_measured_weights_are_rounded_and_never_exceed_the_budget(seed):
    problem = drawn(seed, cells=5)
    cost, weight = problem.total(solve(problem))
    assert weight <= problem.budget * (1 + 1e-9)
    tighter = Problem(problem.cost, problem.weight, problem.budget * (1 - 2 * len(problem.cost) / 20_000))
    assert brute_force(problem) - 1e-9 <= cost <= brute_force(tighter) + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_the_relaxed_optimum_keeps_the_budget_and_is_a_bound_apart(seed):
    problem = drawn(seed)
    cost, weight = problem.total(relax(problem))
    assert weight <= problem.budget * (1 + 1e-6)
    assert cost >= brute_force(problem) - 1e-9


def test_signed_costs_leave_a_part_of_the_budget():
    problem = Problem.of([[0.0, 1.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 1.0]], 2.0)
    for levels in (solve(problem), relax(problem)):
        assert levels.tolist() == [0, 1]


def test_a_forbidden_level_is_never_taken():
    cost = np.array([[np.inf, 5.0], [0.0, -9.0]])
    problem = Problem.of(cost, [[0.0, 1.0], [0.0, 1.0]], 1.0)
    assert solve(problem).tolist() == relax(problem).tolist() == [1, 0]


@pytest.mark.parametrize("budget", [0.5, -1.0, float("nan")])
def test_an_infeasible_budget_is_told_the_feasible_range(budget):
    with pytest.raises(ConfigError, match=r"budget: .* infeasible, must be in \[1, 2\]"):
        Problem.of([[np.inf, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]], budget)


@pytest.mark.slow  # a figure of the processor
def test_2800_cells_take_less_than_2_seconds_of_the_processor():
    rng = np.random.default_rng(0)
    weight = np.linspace(0, 1, 5)[None] * rng.uniform(0.5, 1.5, (2800, 1))
    problem = Problem.of(rng.normal(size=(2800, 5)), weight, 0.46 * weight[:, -1].sum())
    begin = time.process_time()
    _, spent = problem.total(solve(problem))
    assert time.process_time() - begin < 2.0
    assert 0.999 * problem.budget < spent <= problem.budget


# -- ages --------------------------------------------------------------------------------------------------------------


def chain_cost(cost, levels):
    """Of ``[steps, units]`` levels: costs at the ages that they make, written out."""
    total = 0.0
    for unit in range(cost.shape[1]):
        age = 0
        for step in range(len(cost)):
            level = levels[step][unit]
            total += cost[step, unit, age, level]
            age = 0 if level == cost.shape[3] - 1 else min(age + 1, cost.shape[2] - 1)
    return total


@pytest.mark.parametrize("seed", range(6))
def test_chains_are_the_optimum_of_brute_force_for_what_they_spend(seed):
    rng = np.random.default_rng(seed)
    cost = np.cumsum(rng.random((4, 2, 3, 3)), 2) * np.array([1.0, 0.4, 0.0])
    weight = np.array([[0.0, 0.5, 1.0], [0.0, 1.0, 2.0]])
    found = solve_with_ages(cost, weight, 6.0)
    spent = weight[np.arange(2), found].sum()
    assert spent <= 6.0
    every = (np.array(choice).reshape(4, 2) for choice in product(range(3), repeat=8))
    best = min(chain_cost(cost, levels) for levels in every if weight[np.arange(2), levels].sum() <= spent + 1e-9)
    assert chain_cost(cost, found) == pytest.approx(best)


def test_ages_part_long_runs_that_additive_costs_buy():
    """Early steps change most; left stale for long, late ones are worse than that."""
    base = np.array([2.0, 1.1, 1.0, 0.9])
    cost = np.zeros((4, 1, 4, 2))
    cost[..., 0] = (base[:, None] * np.arange(1, 5) ** 2)[:, None, :]
    additive = solve(Problem.of(cost[:, 0, 0], [0.0, 1.0], 2.0))
    assert additive.tolist() == [1, 1, 0, 0]
    assert solve_with_ages(cost, [[0.0, 1.0]], 2.0)[:, 0].tolist() == [1, 0, 1, 0]
