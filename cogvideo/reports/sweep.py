"""The report of a sweep: from the question to how it is repeated, every number taken from the sweep's table."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogvideo.errors import CogVideoError
from cogvideo.reports import html, plots
from cogvideo.reports.results import NOT_RUN, USABLE, Results, fvd_card, read_results, sample_clips
from cogvideo.sweeps.statistics import CONFIDENCE, Difference, corrected, differences, summarize

LOW_IS_BETTER = ("fvd", "kvd", "loss", "seconds", "memory")  # how names of such metrics end
LABEL = " label"  # a column that no table has
DIRTY = "-dirty"  # how a commit ends when files differed from it
TITLES = {
    "fvd": "FVD", "kvd": "kernel distance (KVD)", "action": "action right", "part": "part of the action right",
    "same": "one object all the time", "digit": "digit right", "color": "colour right", "loss": "test loss, nats a token",
    "control": "frame-rate text obeyed",
}  # fmt: skip


def report(
    path: str | Path, out: str | Path, *, notes: str | Path | None = None, ratings: str | Path | None = None
) -> Path:
    """Write the report of a sweep's file, folder or table (see read_results) to one HTML page.

    notes: a Markdown file of what is to be said about the results. ratings: a file of the human study.
    Raises CogVideoError for what cannot be read, and a place that cannot be written.
    """
    results = read_results(path)
    said = _read(notes) if notes else None
    preferred = [html.heading("Human study"), *human_study(ratings)] if ratings else []
    found = differences_of(results)
    parts = [
        f'<p class="quiet">{_facts(results)}</p>',
        html.paragraph(results.question),
        *_verdict(results, found),
        *([html.heading("What to make of it"), html.markdown(said)] if said else []),
        *_tables(results, found),
        *preferred,
        *_clips(results),
        *_protocol(results),
        *_costs(results),
        *_failed(results),
        *_points(results),
        *_repeat(results),
    ]
    return html.write(out, f"Sweep {results.name}", parts)


def differences_of(results: Results) -> list[Difference]:
    """Every variant less the baseline in every metric, in pairs of the same seed; none without a baseline.

    Where other parameters vary, too, pairs have the same ones, and the variant's name tells which. p values are Holm's over
    all comparisons of one metric.
    """
    found: list[Difference] = []
    for label, rows in results.groups().items():
        names = {row[results.variant] for row in rows} if results.variant else set()
        if results.variant and results.baseline in names and "seed" in rows[0]:
            some = differences(rows, results.variant, results.baseline, results.metrics)
            found += [replace(d, variant=_label(d.variant, label)) for d in some]
    return corrected(found)


def labelled(results: Results) -> list[dict[str, Any]]:
    """Usable rows with a column LABEL: the variant, and where other parameters vary what they are."""
    name = results.variant
    rows = [
        row | {LABEL: _label(row[name] if name else "", label)}
        for label, some in results.groups().items()
        for row in some
    ]
    if not results.others:
        return rows
    order = {variant: i for i, variant in enumerate(results.variants)}
    return sorted(rows, key=lambda row: order[row[name]] if name else 0)


def _label(variant: Any, label: str) -> str:
    return ", ".join(filter(None, [str(variant), label])) or "all points"


def better(metric: str) -> int:
    """1 for a metric that should be high, -1 for one that should be low."""
    return -1 if metric.endswith(LOW_IS_BETTER) else 1


def verdict(found: Difference) -> str:
    """What a difference says of its variant: better or worse than the baseline, or not told apart."""
    if not found.clear:
        return "not told apart"
    return "better" if found.mean * better(found.metric) > 0 else "worse"


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
    when = f"{started[0].replace('T', ' ')} to {started[-1].replace('T', ' ')} UTC" if started else "unknown"
    return html.escape(
        f"{len(results.rows)} points: {counts}. Seeds {', '.join(map(html.number, seeds)) or 'none'}. Points begun {when}. "
        f"Commit {', '.join(_distinct(results, 'commit'))}."
    )


def _distinct(results: Results, column: str) -> list[str]:
    return sorted({str(row[column]) for row in results.usable if row.get(column) is not None}) or ["unknown"]


def _verdict(results: Results, found: Sequence[Difference]) -> list[str]:
    """Sentences: which orderings have an interval that excludes zero, and which have not."""
    if not found:
        return []
    holds = [d for d in found if verdict(d) == "worse"]
    against = [d for d in found if verdict(d) == "better"]
    open_ = [d for d in found if not d.clear]
    parts = [
        html.heading("Which orderings hold"),
        html.paragraph(
            f"Every variant is compared with {results.baseline} in pairs of the same seed. "
            f"Intervals are Student's, {CONFIDENCE:.0%}, for each comparison alone; p is two-sided, after Holm over the "
            "comparisons of one metric. An ordering holds where the interval excludes zero."
        ),
    ]
    for title, some in (
        (f"{results.baseline} is better", holds),
        (f"{results.baseline} is worse", against),
        ("Not told apart", open_),
    ):
        if some:
            parts += [html.paragraph(f"{title}:"), html.listing(_sentences(results, some))]
    return parts


def _sentences(results: Results, some: Sequence[Difference]) -> list[str]:
    lines = []
    for variant in dict.fromkeys(d.variant for d in some):
        told = [
            f"{TITLES.get(d.metric, d.metric)} {_signed(d.mean)} ({_signed(d.low)} to {_signed(d.high)}, p {d.p:.2g}, n {d.n})"
            for d in some
            if d.variant == variant
        ]
        lines.append(f"{variant} less {results.baseline}: {'; '.join(told)}")
    return lines


def _signed(value: float) -> str:
    text = html.number(abs(value))
    return text if text == "0" else f"{'−' if value < 0 else '+'}{text}"


def _tables(results: Results, found: Sequence[Difference]) -> list[str]:
    shown = {metric: TITLES.get(metric, metric) for metric in results.metrics}
    header = [
        f"{title} ({'low' if better(metric) < 0 else 'high'} is better)" for metric, title in shown.items()
    ]
    points = labelled(results)
    sums = {(s.variant, s.metric): s for s in summarize(points, LABEL, results.metrics)}
    rows = []
    for variant in dict.fromkeys(row[LABEL] for row in points):
        cells = [sums.get((variant, metric)) for metric in results.metrics]
        seeds = max((s.n for s in cells if s), default=0)
        rows.append([str(variant), seeds, *(_mean(s) for s in cells)])
    parts = [
        html.heading("The table"),
        html.paragraph("Mean ± standard deviation over seeds."),
        html.table("summary", [results.variant or "", "seeds", *header], rows),
        html.figure(
            plots.plot_values(points, LABEL, results.metrics, shown), "A dot a seed; the line is the mean."
        ),
        *_curves(results, shown),
    ]
    if found:
        rows = [
            [
                str(d.variant),
                TITLES.get(d.metric, d.metric),
                d.mean,
                d.low,
                d.high,
                f"{d.p:.2g}",
                d.n,
                _colored(d),
            ]
            for d in found
        ]
        parts += [
            html.heading(f"Differences from {results.baseline}"),
            html.table(
                "differences", ["variant", "metric", "difference", "low", "high", "p (Holm)", "seeds", "the variant is"],
                rows, text=(0, 1, 7),
            ),
            html.figure(
                plots.plot_differences(found, shown, {metric: better(metric) for metric in results.metrics}),
                f"Each variant less {results.baseline}, {CONFIDENCE:.0%} intervals. Green: {results.baseline} is better. Orange: it is worse.",
            ),
        ]  # fmt: skip
    return parts


def _curves(results: Results, shown: dict[str, str]) -> list[str]:
    """Metrics over the one other parameter that varies, if it is a number."""
    if len(results.others) != 1 or results.variant is None:
        return []
    (over,) = results.others
    if not all(isinstance(row[over], (int, float)) for row in results.usable):
        return []
    drawn = plots.plot_curves(results.usable, results.variant, over, results.metrics, shown)
    return [html.figure(drawn, f"Over {over}: means and standard deviations over seeds.")]


def _mean(summary: Any) -> str | None:
    if summary is None:
        return None
    spread = "" if summary.deviation is None else f" ± {html.number(summary.deviation)}"
    return html.number(summary.mean) + spread


def _colored(d: Difference) -> tuple[str, ...]:
    told = verdict(d)
    return (told, told) if d.clear else (told,)


def _clips(results: Results) -> list[str]:
    seed, rows = sample_clips(results)
    if not rows:
        return []
    said = f"The same prompts and random numbers for all variants (seed {seed}), small as they were made."
    return [
        html.heading("Clips side by side"),
        html.paragraph(said),
        html.clips(rows, [str(name) for name in results.variants]),
    ]


def _protocol(results: Results) -> list[str]:
    fixed = ", ".join(f"{name} {html.number(value)}" for name, value in results.fixed().items())
    varied = [name for name in results.parameters if name not in results.fixed()]
    parts = [
        html.heading("Protocol"),
        html.paragraph(f"The same in all points: {fixed or 'nothing'}."),
        html.paragraph(f"Varied: {', '.join(varied) or 'nothing'}."),
    ]
    if told := fvd_card(results):
        parts += [html.paragraph("The card of one FVD; those of the other points differ in the clips alone:")]
        parts += [html.preformatted(told)]
    return parts


def _costs(results: Results) -> list[str]:
    rows, points = [], labelled(results)
    for variant in dict.fromkeys(row[LABEL] for row in points):
        some = [row for row in points if row[LABEL] == variant]
        seconds = [row["seconds"] for row in some if row.get("seconds") is not None]
        memory = [row["peak_memory"] / 1e9 for row in some if row.get("peak_memory") is not None]
        mean = sum(seconds) / len(seconds) if seconds else None
        rows.append(
            [str(variant), len(some), mean, sum(seconds) if seconds else None, max(memory, default=None)]
        )
    header = [results.variant or "", "points", "seconds a point", "seconds in all", "peak memory, GB"]
    return [html.heading("Costs"), html.table("costs", header, rows)]


def _failed(results: Results) -> list[str]:
    parts = [html.heading("What failed")]
    bad = [row for row in results.rows if row["status"] not in (*USABLE, *NOT_RUN)]
    absent = Counter(row["status"] for row in results.rows if row["status"] in NOT_RUN)
    if absent:
        told = " and ".join(f"{count} {state}" for state, count in absent.items())
        parts.append(html.paragraph(f"The sweep is not through: of {len(results.rows)} points {told}."))
    if not bad:
        return [*parts, html.paragraph("No point failed.")]
    rows = [[row["point"], row["status"], row.get("reason"), row.get("error")] for row in bad]
    return [*parts, html.table("failed", ["point", "status", "reason", "error"], rows, text=(0, 1, 2, 3))]


def _points(results: Results) -> list[str]:
    varied = [name for name in results.parameters if name not in results.fixed()]
    rows = [[*(row.get(n) for n in varied), *(row.get(n) for n in results.metrics), row.get("seconds")] for row in results.usable]  # fmt: skip
    header = [*varied, *(TITLES.get(name, name) for name in results.metrics), "seconds"]
    return [html.heading("All points"), html.table("points", header, rows, text=tuple(range(len(varied))))]


def _repeat(results: Results) -> list[str]:
    versions = "; ".join(
        ", ".join(f"{name} {version}" for name, version in json.loads(told).items())
        if told.startswith("{")
        else told
        for told in _distinct(results, "versions")
    )
    commits = _distinct(results, "commit")
    lines = [f"git checkout {commits[0].removesuffix(DIRTY)}", *results.repeat, f"cogvideo report {results.repeat[0].split()[-1]} -o report.html"]  # fmt: skip
    parts = [html.heading("How to repeat it"), html.preformatted("\n".join(lines))]
    if len(commits) > 1 or any(commit.endswith(DIRTY) for commit in commits):
        parts.append(
            html.paragraph(f"Commits of the points: {', '.join(commits)}; {DIRTY} marks files that differed.")
        )
    parts.append(html.paragraph(f"Environment: {versions}. Hosts: {', '.join(_distinct(results, 'host'))}."))
    return parts


def human_study(ratings: str | Path) -> list[str]:
    """Strengths and agreement of a file of ratings as parts of a page; says so where raters are simulated."""
    from cogvideo.evaluation.human_study import agreement, read_ratings, strengths

    rated = read_ratings(ratings)
    found = strengths(rated)
    rows = [[name, s.mean, s.low, s.high, s.wins, s.answers] for name, s in found.items()]
    raters = len({r.rater for r in rated})
    kappa = agreement(rated)
    simulated = sorted({r.rater for r in rated if r.simulated})
    said = f"{len(rated)} answers of {raters} raters."
    if simulated:
        said += f" The raters {', '.join(simulated)} are simulated: they exercise the method and say nothing about people."
    agreed = "unknown (no pair was rated twice)" if kappa is None else html.number(kappa)
    drawn = plots.plot_strengths(
        list(found),
        [s.mean for s in found.values()],
        [s.low for s in found.values()],
        [s.high for s in found.values()],
    )
    header = ["variant", "strength", "low", "high", "preferred", "answers"]
    return [
        html.paragraph(f"{said} Agreement between raters (Krippendorff's alpha): {agreed}."),
        html.table("study", header, rows),
        html.figure(drawn, f"Bradley-Terry strengths, their mean 0, {CONFIDENCE:.0%} intervals over pairs."),
    ]
