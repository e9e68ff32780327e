"""The report of a sweep, from the question to how to repeat it; every number is the table's."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from cogvideo.errors import CogVideoError
from cogvideo.reports import html, plots
from cogvideo.reports.results import NOT_RUN, USABLE, Results, fvd_card, read_results, sample_clips
from cogvideo.sweeps.statistics import (
    CONFIDENCE,
    Difference,
    Summary,
    corrected,
    detectable,
    differences,
    summarize,
)

LOW_IS_BETTER = ("fvd", "kvd", "mind", "loss", "seconds", "memory")  # how names of such metrics end
LABEL = " label"  # a column that no table has
DIRTY = "-dirty"  # how a commit ends when files differed from it
TITLES = {
    "fvd": "FVD", "kvd": "kernel distance (KVD)", "mind": "sliced distance (MIND)",
    "loss": "test loss, nats a token",
    "part": "part of the action right", "same": "the same actor and object all the time",
    "order": "phases in order", "whole": "whole clip right", "actor": "actor right", "object": "object right",
    "background": "background steady", "control": "frame-rate text obeyed",
    **{f"order_{seconds}s": f"phases in order, {seconds} s" for seconds in (1, 2, 4, 8)},
    "order_unseen": "phases in order, unseen", "order_picture_only": "phases in order, picture-only",
    "same_picture_only": "the same all the time, picture-only",
    "actor_picture_only": "actor right, picture-only", "object_picture_only": "object right, picture-only",
}  # fmt: skip


def report(
    path: str | Path, out: str | Path, *, notes: str | Path | None = None, ratings: str | Path | None = None
) -> Path:
    """Write the report of a sweep's file, folder or table (see read_results) to one HTML page.

    notes: a Markdown file with what there is to say about the results. ratings: a file of the human study.
    """
    results = read_results(path)
    said = _read(notes) if notes else None
    preferred = [html.heading("Human study"), *human_study(ratings)] if ratings else []
    found = differences_of(results)
    parts = [
        html.paragraph(_facts(results), "quiet"),
        html.paragraph(results.sweep.question),
        *_verdict(results, found),
        *([html.heading("What to make of it"), html.markdown(said)] if said else []),
        *_clips(results),
        *_summary(results),
        *_sample_size(found),
        *preferred,
        *_protocol(results),
        *_costs(results),
        *_failed(results),
        *_points(results),
        *_repeat(results),
    ]
    return html.write(out, f"Sweep {results.sweep.name}", parts)


def differences_of(results: Results) -> list[Difference]:
    """Every variant less the baseline in every metric, in pairs of the same seed; none without a baseline.

    Where other parameters vary, too, pairs have the same ones, and the variant's name says which. p values
    and intervals are Holm's over all comparisons of one metric. Metric by metric, the variant that falls
    behind the baseline most comes first.
    """
    found: list[Difference] = []
    for label, rows in results.groups().items():
        names = {row[results.variant] for row in rows} if results.variant else set()
        if results.variant and results.baseline in names and "seed" in rows[0]:
            some = differences(rows, results.variant, results.baseline, results.metrics)
            found += [replace(d, variant=_label(d.variant, label)) for d in some]
    order = {metric: i for i, metric in enumerate(results.metrics)}
    return sorted(corrected(found), key=lambda d: (order[d.metric], d.mean * better(d.metric)))


def labelled(results: Results) -> list[dict[str, Any]]:
    """Usable rows by variant, with a column LABEL: the variant and its other varied parameters."""
    name, order = results.variant, {variant: i for i, variant in enumerate(results.variants)}
    rows = [
        row | {LABEL: _label(row[name] if name else "", label)}
        for label, some in results.groups().items()
        for row in some
    ]
    return sorted(rows, key=lambda row: order[row[name]]) if name and results.others else rows


def _label(variant: Any, label: str) -> str:
    return ", ".join(filter(None, [str(variant), label])) or "all points"


def better(metric: str) -> int:
    """1 for a metric that should be high, -1 for one that should be low."""
    return -1 if metric.endswith(LOW_IS_BETTER) else 1


def verdict(found: Difference) -> str:
    """Is a variant better or worse than the baseline, or not told apart from it? By Holm's p alone."""
    if not found.clear:
        return "not told apart"
    return "better" if found.mean * better(found.metric) > 0 else "worse"


def _title(metric: str) -> str:
    """The metric's name with an arrow to where it should go."""
    return f"{TITLES.get(metric, metric)} {'↓' if better(metric) < 0 else '↑'}"


def _read(notes: str | Path) -> str:
    try:
        return Path(notes).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CogVideoError(f"The notes {notes} cannot be read ({error}): give a Markdown file.") from None


def _facts(results: Results) -> str:
    states = Counter("done" if row["status"] in USABLE else row["status"] for row in results.rows)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    seeds = sorted({row["seed"] for row in results.usable if row.get("seed") is not None})
    started = sorted(str(row["started"])[:16] for row in results.usable if row.get("started"))
    when = f"{started[0]} to {started[-1]} UTC".replace("T", " ", 2) if started else "unknown"
    return (
        f"{len(results.rows)} points: {counts}. Seeds {', '.join(map(html.number, seeds)) or 'none'}. "
        f"Points begun {when}. Commit {', '.join(_distinct(results, 'commit'))}."
    )


def _distinct(results: Results, column: str) -> list[str]:
    return sorted({str(row[column]) for row in results.usable if row.get(column) is not None}) or ["unknown"]


def _verdict(results: Results, found: Sequence[Difference]) -> list[str]:
    """What is told apart, in words without numbers; the differences as a plot; their numbers as a table."""
    if not found:
        return []
    baseline = results.baseline
    parts = [
        html.heading("Which orderings hold"),
        html.paragraph(
            f"Every variant is compared with {baseline} in pairs of the same seed (Student's test, "
            f"two-sided). An ordering holds where p, after Holm over the comparisons of one metric, is below "
            f"{1 - CONFIDENCE:g}. Intervals have the confidence at which Holm tests each comparison, "
            f"{CONFIDENCE:.0%} or more: where p is below, they exclude zero. "
            "↑: high is better; ↓: low is better."
        ),
    ]
    titles = (f"{baseline} is better", f"{baseline} is worse", "Not told apart")
    for kind, title in zip(("worse", "better", "not told apart"), titles, strict=True):
        some = [d for d in found if verdict(d) == kind]
        lines = [
            f"{TITLES.get(metric, metric)}: {'; '.join(d.variant for d in some if d.metric == metric)}"
            for metric in dict.fromkeys(d.metric for d in some)
        ]
        parts += [html.subheading(title), html.listing(lines)] if some else []
    shown = {metric: _title(metric) for metric in results.metrics}
    drawn = plots.plot_differences(found, shown, {metric: better(metric) for metric in shown})
    caption = (
        f"Each variant less {baseline}. Green: {baseline} is better; orange: worse; grey: not told apart."
    )
    rows = []
    for d in found:
        said = (verdict(d), verdict(d)) if d.clear else verdict(d)  # with its colour
        numbers = (html.number(value, 3) for value in (d.mean, d.low, d.high, 100 * d.confidence))
        rows.append([shown[d.metric], d.variant, *numbers, f"{d.p:.2g}", d.n, said])
    header = [
        "metric",
        "variant",
        "difference",
        "low",
        "high",
        "interval, %",
        "p (Holm)",
        "seeds",
        "the variant is",
    ]
    table = html.table("differences", header, rows, text=(0, 1, 8))
    return [*parts, html.subheading(f"Differences from {baseline}"), html.figure(drawn, caption), table]


def _summary(results: Results) -> list[str]:
    shown = {metric: _title(metric) for metric in results.metrics}
    points = labelled(results)
    sums = {(s.variant, s.metric): s for s in summarize(points, LABEL, results.metrics)}
    grid = [[results.variant or "", "seeds", *shown.values()]]
    for variant in dict.fromkeys(row[LABEL] for row in points):
        cells = [sums.get((variant, metric)) for metric in results.metrics]
        grid.append([variant, str(max((s.n for s in cells if s), default=0)), *map(_mean, cells)])
    if len(grid) <= len(shown):  # the longer of the two goes down the page
        grid = [list(row) for row in zip(*grid, strict=True)]
    drawn = plots.plot_values(points, LABEL, results.metrics, shown)
    parts = [
        html.heading("The scores"),
        html.paragraph("Mean ± standard deviation over seeds."),
        html.table("summary", grid[0], grid[1:]),
        html.figure(drawn, "A dot a seed; the line is the mean."),
    ]
    # Metrics over the one other parameter that varies, if it is a number.
    if results.variant and len(results.others) == 1:
        (over,) = results.others
        if all(isinstance(row[over], (int, float)) for row in results.usable):
            drawn = plots.plot_curves(results.usable, results.variant, over, results.metrics, shown)
            parts.append(html.figure(drawn, f"Over {over}: means and standard deviations over seeds."))
    return parts


def _sample_size(found: Sequence[Difference]) -> list[str]:
    """How large a difference must be to be found, with the seeds that there are and with others."""
    if not found:
        return []
    counts = sorted({max(d.n for d in found), 3, 6, 12})
    rows = []
    for metric in dict.fromkeys(d.metric for d in found):
        some = [d for d in found if d.metric == metric]
        deviation = median(d.deviation for d in some)
        smallest = (html.number(detectable(deviation, seeds, len(some)), 2) for seeds in counts)
        rows.append([_title(metric), html.number(deviation, 2), *smallest])
    return [
        html.heading("How many seeds are enough"),
        html.paragraph(
            "Deviation: of the differences between two variants with the same seed, the median over all "
            "comparisons. Beside it, for so many seeds, the smallest true difference that is found in four "
            "of five repetitions, when it has to pass Holm's strictest step."
        ),
        html.table("seeds", ["metric", "deviation", *(f"{count} seeds" for count in counts)], rows),
    ]


def _mean(summary: Summary | None) -> str:
    if summary is None:
        return html.number(None)
    spread = "" if summary.deviation is None else f" ± {html.number(summary.deviation, 3)}"
    return html.number(summary.mean, 3) + spread


def _clips(results: Results) -> list[str]:
    seed, rows = sample_clips(results)
    if not rows:
        return []
    said = f"The same prompts and random numbers for all variants (seed {seed}), small as they were made."
    clips = html.clips(rows, [str(name) for name in results.variants])
    return [html.heading("Clips side by side"), html.paragraph(said), clips]


def _protocol(results: Results) -> list[str]:
    fixed = ", ".join(f"{name} {html.number(value)}" for name, value in results.fixed.items())
    parts = [
        html.heading("Protocol"),
        html.paragraph(f"The same in all points: {fixed or 'nothing'}."),
        html.paragraph(f"Varied: {', '.join(results.varied) or 'nothing'}."),
    ]
    if card := fvd_card(results):
        parts += [html.paragraph("The card of one FVD; those of the other points differ in the clips alone:")]
        parts += [html.preformatted(card)]
    return parts


def _costs(results: Results) -> list[str]:
    rows, points = [], labelled(results)
    for variant in dict.fromkeys(row[LABEL] for row in points):
        some = [row for row in points if row[LABEL] == variant]
        seconds = [row["seconds"] for row in some if row.get("seconds") is not None]
        memory = [row["peak_memory"] / 1e9 for row in some if row.get("peak_memory") is not None]
        times = [sum(seconds) / len(seconds), sum(seconds)] if seconds else [None, None]
        rows.append([variant, len(some), *times, max(memory, default=None)])
    header = [results.variant or "", "points", "seconds a point", "seconds in all", "peak memory, GB"]
    return [html.heading("Costs"), html.table("costs", header, rows)]


def _failed(results: Results) -> list[str]:
    parts = [html.heading("What failed")]
    bad = [row for row in results.rows if row["status"] not in (*USABLE, *NOT_RUN)]
    if absent := Counter(row["status"] for row in results.rows if row["status"] in NOT_RUN):
        counts = " and ".join(f"{count} {state}" for state, count in absent.items())
        parts.append(html.paragraph(f"The sweep is not through: of {len(results.rows)} points {counts}."))
    if not bad:
        return [*parts, html.paragraph("No point failed.")]
    columns = ["point", "status", "reason", "error"]
    rows = [[row.get(column) for column in columns] for row in bad]
    return [*parts, html.table("failed", columns, rows, text=range(len(columns)))]


def _points(results: Results) -> list[str]:
    columns = [*results.varied, *results.metrics, "seconds"]
    header = [*results.varied, *map(_title, results.metrics), "seconds"]
    rows = [[row.get(column) for column in columns] for row in results.usable]
    table = html.table("points", header, rows, text=range(len(results.varied)))
    return [html.heading("All points"), table]


def _repeat(results: Results) -> list[str]:
    versions = [
        ", ".join(f"{name} {version}" for name, version in json.loads(text).items())
        if text.startswith("{")
        else text
        for text in _distinct(results, "versions")
    ]
    commits = _distinct(results, "commit")
    file = f"reports/sweeps/{results.sweep.file.name}"
    lines = [
        f"git checkout {commits[0].removesuffix(DIRTY)}",
        f"cogvideo sweep run {file}",
        f"cogvideo report {file} -o report.html",
    ]
    parts = [html.heading("How to repeat it"), html.preformatted("\n".join(lines))]
    if len(commits) > 1 or commits[0].endswith(DIRTY):
        listed = ", ".join(commits)
        parts.append(html.paragraph(f"Commits of the points: {listed}; {DIRTY} marks files that differed."))
    hosts = ", ".join(_distinct(results, "host"))
    return [*parts, html.paragraph(f"Environment: {'; '.join(versions)}. Hosts: {hosts}.")]


def human_study(ratings: str | Path) -> list[str]:
    """Strengths and agreement of a file of ratings as parts of a page; says so where raters are simulated."""
    from cogvideo.evaluation.human_study import agreement, read_ratings, strengths

    rated = read_ratings(ratings)
    found, kappa = strengths(rated), agreement(rated)
    said = f"{len(rated)} answers of {len({r.rater for r in rated})} raters."
    if simulated := sorted({r.rater for r in rated if r.simulated}):
        said += (
            f" The raters {', '.join(simulated)} are simulated: they exercise the method and say nothing "
            "about people."
        )
    agreed = "unknown (no pair was rated twice)" if kappa is None else html.number(kappa)
    header = ["variant", "strength", "low", "high", "preferred", "answers"]
    rows = [[name, s.mean, s.low, s.high, s.wins, s.answers] for name, s in found.items()]
    caption = f"Bradley-Terry strengths, their mean 0, {CONFIDENCE:.0%} intervals over pairs."
    return [
        html.paragraph(f"{said} Agreement between raters (Krippendorff's alpha): {agreed}."),
        html.table("study", header, rows),
        html.figure(plots.plot_strengths(found), caption),
    ]
