"""Results of a human study: means and shares with intervals, agreement of raters, strengths of systems.

    scores   mean per system and aspect, 95 % interval over prompts; Krippendorff's alpha (ordinal) per aspect
    pairs    shares won; Bradley-Terry strengths, 95 % interval over prompts; Krippendorff's alpha (nominal)

alpha = 1 - D_o / D_e, observed over expected disagreement (Krippendorff, Computing Krippendorff's Alpha-Reliability,
2011). P(i beats j) = p_i / (p_i + p_j) (Bradley and Terry 1952), by Newton's steps on the logarithms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vlad.eval.human_study.ratings import Answer
from vlad.eval.human_study.study import ASPECTS

Level = Literal["nominal", "ordinal", "interval"]
RESAMPLES = 1000
MOST_STEPS, MOST_STEP, TOLERANCE = 100, 2.0, 1e-9
PRIOR = 0.1  # games won and lost against a system of strength 1: keeps a system that won all finite
TIE = "tie"


def krippendorff_alpha(units: Sequence[Sequence[float]], level: Level) -> float | None:
    """Agreement of the values that several raters gave to each unit (1: perfect, 0: chance), without missing ones.

    None where no two values can be compared, or where all are the same.
    """
    pairable = [list(values) for values in units if len(values) > 1]
    domain = sorted({value for values in pairable for value in values})
    place = {value: number for number, value in enumerate(domain)}
    coincidences = np.zeros((len(domain), len(domain)))  # o_ck
    for values in pairable:
        counts = np.bincount([place[value] for value in values], minlength=len(domain)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(values) - 1)
    totals = coincidences.sum(axis=1)  # n_c
    distances = _distances(np.array(domain), totals, level)
    expected = float((np.outer(totals, totals) * distances).sum())
    if expected == 0:
        return None
    return 1 - (totals.sum() - 1) * float((coincidences * distances).sum()) / expected


def _distances(domain: np.ndarray, totals: np.ndarray, level: Level) -> np.ndarray:
    """Squared differences between values (delta^2)."""
    if level == "nominal":
        return 1.0 - np.eye(len(domain))
    if level == "interval":
        return np.subtract.outer(domain, domain) ** 2
    # delta: sum_{g=c..k} n_g - (n_c + n_k) / 2.
    ranks = np.cumsum(totals) - totals / 2
    return np.subtract.outer(ranks, ranks) ** 2


def bradley_terry(wins: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """Strengths (mean of the logarithms 0) from wins (N N: how often row beat column; a tie is half a win each).

    With `prior` 0, of maximum likelihood, which exists only where no system has won or lost all.
    """
    games = wins + wins.T
    theta = np.zeros(len(wins))
    for _ in range(MOST_STEPS):
        expected = 1 / (1 + np.exp(np.subtract.outer(theta, theta).T))  # N N, P(row beats column)
        against = 1 / (1 + np.exp(-theta))
        gradient = (wins - games * expected).sum(axis=1) + prior * (1 - 2 * against)
        curvature = games * expected * (1 - expected)
        hessian = np.diag(curvature.sum(axis=1) + 2 * prior * against * (1 - against)) - curvature
        # Without a prior a common shift changes nothing: least squares leave it out.
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        theta += np.clip(step, -MOST_STEP, MOST_STEP)
        if np.abs(step).max() < TOLERANCE:
            break
    return np.exp(theta - theta.mean())


def study_results(answers: Sequence[Answer], systems: Sequence[str], kind: str, seed: int = 0) -> dict[str, Any]:
    """All figures of a study as plain values."""
    about = {"kind": kind, "raters": len({answer.rater for answer in answers}), "answers": len(answers)}
    if kind == "scores":
        return {**about, "aspects": {aspect: _scores(answers, systems, aspect, seed) for aspect in ASPECTS}}
    return {**about, **_pairs(answers, systems, seed)}


def _scores(answers: Sequence[Answer], systems: Sequence[str], aspect: str, seed: int) -> dict[str, Any]:
    own = [answer for answer in answers if answer.aspect == aspect]
    units: dict[tuple[str, str], list[float]] = defaultdict(list)
    sums: dict[str, dict[str, tuple[float, int]]] = {name: {} for name in systems}
    for answer in own:
        (name,) = answer.systems
        units[answer.prompt, name].append(float(answer.value))
        amount, count = sums[name].get(answer.prompt, (0.0, 0))
        sums[name][answer.prompt] = (amount + float(answer.value), count + 1)
    found: dict[str, Any] = {}
    for name in systems:
        table = np.array(list(sums[name].values()), dtype=float).reshape(-1, 2)
        if not len(table):
            found[name] = None
            continue
        low, high = _intervals(len(table), _mean_of(table), seed)
        found[name] = {
            "mean": float(table[:, 0].sum() / table[:, 1].sum()),
            "low": float(low),
            "high": float(high),
            "answers": int(table[:, 1].sum()),
        }
    return {"systems": found, "alpha": krippendorff_alpha(list(units.values()), "ordinal")}


def _mean_of(table: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The mean score of some prompts' (sum, count) rows."""
    return lambda rows: table[rows, 0].sum() / table[rows, 1].sum()


def _pairs(answers: Sequence[Answer], systems: Sequence[str], seed: int) -> dict[str, Any]:
    number = {name: place for place, name in enumerate(systems)}
    by_prompt: dict[str, np.ndarray] = {}
    units: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)
    for answer in answers:
        left, right = (number[name] for name in answer.systems)
        wins = by_prompt.setdefault(answer.prompt, np.zeros((len(systems), len(systems))))
        for winner, loser, share in ((left, right, answer.value == "left"), (right, left, answer.value == "right")):
            wins[winner, loser] += 0.5 if answer.value == TIE else float(share)
        # The same value for the same winner, on either side.
        chosen = -1 if answer.value == TIE else left if answer.value == "left" else right
        units[answer.prompt, tuple(sorted(answer.systems))].append(float(chosen))
    table = np.array(list(by_prompt.values())) if by_prompt else np.zeros((0, len(systems), len(systems)))
    total = table.sum(axis=0)
    games = (total + total.T).sum(axis=1)
    strengths = np.log(bradley_terry(total))
    found: dict[str, Any] = {}
    lows, highs = _intervals(len(table), lambda rows: np.log(bradley_terry(table[rows].sum(axis=0))), seed)
    for name, place in number.items():
        if not games[place]:
            found[name] = None
            continue
        found[name] = {
            "share_won": float(total[place].sum() / games[place]),
            "strength": float(strengths[place]),
            "low": float(lows[place]),
            "high": float(highs[place]),
            "games": int(games[place]),
        }
    return {"systems": found, "alpha": krippendorff_alpha(list(units.values()), "nominal")}


def _intervals(count: int, value: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of figures over resampled prompts: low and high ends."""
    rng = np.random.default_rng(seed)
    resampled = np.array([value(rng.integers(count, size=count)) for _ in range(RESAMPLES if count else 1)])
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return low, high


def study_table(results: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    about = f"{results['raters']} raters, {results['answers']} answers; intervals of 95 % over prompts\n"
    if results["kind"] == "scores":
        aspects = results["aspects"]
        names = list(next(iter(aspects.values()))["systems"])
        lines = [f"| | {' | '.join(ASPECTS[aspect].split(':')[0] for aspect in aspects)} |"]
        lines.append("|---" * (len(aspects) + 1) + "|")
        for name in names:
            cells = [_cell(found["systems"][name], "mean") for found in aspects.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        alphas = [_number(found["alpha"]) for found in aspects.values()]
        lines.append(f"| Krippendorff's alpha (ordinal) | {' | '.join(alphas)} |")
        return "\n".join(lines) + "\n\n" + about
    lines = ["| | share won | Bradley-Terry, log strength | comparisons |", "|---|---|---|---|"]
    for name, found in results["systems"].items():
        if found is None:
            lines.append(f"| {name} | - | - | 0 |")
        else:
            lines.append(f"| {name} | {found['share_won']:.3f} | {_cell(found, 'strength')} | {found['games']} |")
    return "\n".join(lines) + f"\n\nKrippendorff's alpha (nominal): {_number(results['alpha'])}\n" + about


def _cell(found: Mapping[str, float] | None, name: str) -> str:
    return "-" if found is None else f"{found[name]:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
