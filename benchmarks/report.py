"""The measured numbers as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.summary import aligned

from .approximations import Error
from .measure import Cell, Result
from .memory import Memory
from .methods import DIFFUSERS, HOOKS, ONE_BATCH, OURS, PLAIN, TWO_LOADED, TWO_PASSES
from .sweeps import SweepResult
from .timing import Seconds, Spread, Timings, ratio

_MIB = 1024**2
_TIME_TARGETS = {PLAIN: 2.05, TWO_LOADED: 1.0, HOOKS: 0.85, DIFFUSERS: 0.92}
_MEMORY_TARGETS = {PLAIN: 1.03, TWO_LOADED: 0.54}
_SWEEP_TARGET = 0.75
_APPROXIMATE_TARGETS = {"direction at one of 3 steps": 1.40, "shared uncond": 1.55}


def cell_section(result: Result) -> str:
    """One cell: a row per method."""
    wall = result.timings.wall
    header = ["method", "evaluations a step", "ms a step", *(f"÷ {name}" for name in _TIME_TARGETS)]
    header += ["largest difference", "set-up ms a run"]
    rows = [
        [
            name,
            result.evaluations[name],
            _milliseconds(seconds),
            *(_against(wall, name, reference) for reference in _TIME_TARGETS),
            f"{result.differences[name]:.1e}",
            _milliseconds(result.timings.set_up[name]),
        ]
        for name, seconds in wall.items()
    ]
    title = f"{result.cell} ({result.timings.rounds} rounds, {result.steps} steps a run)"
    note = f"Differences are those from {result.reference}, whose latents reach {result.magnitude:.1f}."
    return f"{_section(title, header, rows)}\n\n{note}"


def summary_section(results: Sequence[Result]) -> str:
    """Our step against each target, a row per cell."""
    header = ["cell", "clock", *(f"÷ {name} (aim ≤ {aim})" for name, aim in _TIME_TARGETS.items())]
    header += ["the pair chooses", "÷ the faster of both (aim ≤ 1.02)"]
    by_cell: dict[Cell, list[Result]] = {}
    for result in results:
        by_cell.setdefault(result.cell, []).append(result)
    rows = []
    for cell, of_cell in by_cell.items():
        for clock in ("wall", "cpu"):
            # A cell of a large model is measured in groups; each method's times are in one of them.
            beside = {name: getattr(r.timings, clock) for r in reversed(of_cell) for name in r.timings.wall}
            ratios = [_against(beside.get(reference, {}), OURS, reference) for reference in _TIME_TARGETS]
            rows.append([str(cell), clock, *ratios, *_auto(of_cell[0], beside[OURS])])
    return _section(f"{OURS}, time of a step", header, rows)


def _auto(result: Result, seconds: Seconds) -> list[str]:
    """What the pair chooses, and the time of that against the faster of both.

    It is the same work as the chosen way, so its own time would only add the noise of another measurement.
    """
    ways = [ONE_BATCH, TWO_PASSES]
    chosen, other = ways if result.evaluations[OURS] == result.evaluations[ONE_BATCH] else reversed(ways)
    return [chosen.removeprefix("RLG, "), f"{max(1.0, ratio(seconds, chosen, other).median):.3f}"]


def sweep_section(sweeps: Sequence[SweepResult]) -> str:
    """Sweeps against as many separate runs."""
    header = ["sweep", "rounds", "evaluations", "of separate runs", "÷", "seconds", "of separate runs"]
    header.append(f"÷ (aim ≤ {_SWEEP_TARGET} for switches)")
    rows = [
        [
            sweep.name,
            str(len(sweep.seconds)),
            str(sweep.evaluations),
            str(sweep.evaluations_apart),
            f"{sweep.evaluations / sweep.evaluations_apart:.3f}",
            f"{Spread.of(sweep.seconds).median:.2f}",
            f"{Spread.of(sweep.seconds_apart).median:.2f}",
            _spread(Spread.of([a / b for a, b in zip(sweep.seconds, sweep.seconds_apart, strict=True)])),
        ]
        for sweep in sweeps
    ]
    return _section("Sweeps against separate runs (evaluations are rows of latents through the model)", header, rows)


def approximation_times_section(timings: Timings) -> str:
    """Steps of the approximate modes beside exact guidance."""
    header = ["mode", "ms a step", f"÷ {PLAIN}", "÷ exact"]
    rows = [
        [name, _milliseconds(seconds), *(_spread(ratio(timings.wall, name, reference)) for reference in (PLAIN, OURS))]
        for name, seconds in timings.wall.items()
    ]
    aims = ", ".join(f"≤ {aim} × {PLAIN} for {name}" for name, aim in _APPROXIMATE_TARGETS.items())
    return _section(f"Approximate modes, time of a step ({timings.rounds} rounds; aims: {aims})", header, rows)


def approximation_errors_section(errors: Mapping[float, Mapping[str, Error]]) -> str:
    """What the approximate modes change in the pictures of the demo's pair."""
    header = ["CFG", "mode", "latent RMS", "SSIM", "composition reward - exact [95 %]"]
    rows = [
        [f"{cfg:g}", name, f"{error.latent:.3f}", f"{error.ssim:.4f}", str(error.reward)]
        for cfg, modes in errors.items()
        for name, error in modes.items()
    ]
    exact = "; ".join(f"{next(iter(modes.values())).exact_reward} at CFG {cfg:g}" for cfg, modes in errors.items())
    title = "Approximate modes, error against exact guidance on the demo's composition pair"
    return f"{_section(title, header, rows)}\n\nExact reward: {exact}."


def overhead_section(timings: Timings) -> str:
    """CPU time a step around networks that do nothing: too short for a clock that other programs disturb."""
    header = ["method", "CPU ms a step", f"more than {PLAIN}", f"more than {TWO_LOADED}"]

    def more(seconds: Sequence[float], reference: str) -> str:
        pairs = zip(seconds, timings.cpu[reference], strict=True)
        return _spread(Spread.of([1e3 * (a - b) for a, b in pairs]))

    rows = [
        [name, f"{1e3 * Spread.of(seconds).median:.3f}", more(seconds, PLAIN), more(seconds, TWO_LOADED)]
        for name, seconds in timings.cpu.items()
    ]
    return _section(f"Code around networks that do nothing ({timings.rounds} rounds)", header, rows)


def memory_section(depth: int, dtype: str, memory: Mapping[str, Memory]) -> str:
    """Memory of each way, and ours against one and two models."""
    header = ["method", "weights MiB", *(f"÷ {name}" for name in _MEMORY_TARGETS), "peak MiB"]
    header += [f"÷ {name}" for name in _MEMORY_TARGETS]

    def against(values: Mapping[str, int], name: str) -> list[str]:
        ratios = [values[name] / values[reference] for reference in _MEMORY_TARGETS]
        return [f"{values[name] / _MIB:.1f}", *(f"{ratio:.3f}" for ratio in ratios)]

    weights = {name: m.weights for name, m in memory.items()}
    peak = {name: m.peak for name, m in memory.items()}
    rows = [[name, *against(weights, name), *against(peak, name)] for name in memory]
    aims = ", ".join(f"≤ {aim} of {name}" for name, aim in _MEMORY_TARGETS.items())
    return _section(f"Memory at depth {depth}, {dtype} (aims for our weights: {aims})", header, rows)


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"### {title}\n\n{aligned([header, *rows])}"


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1e3 * Spread.of(seconds).median:.1f}"


def _against(seconds: Seconds, method: str, reference: str) -> str:
    """The ratio of two methods, if memory allowed to measure them together."""
    return _spread(ratio(seconds, method, reference)) if reference in seconds else "–"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} … {spread.high:.3f})"
