"""Every number of a sweep's report is found in its table: computed with SciPy, read off the page."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from reports.page import Page
from scipy import stats

from cogvideo import CogVideoError
from cogvideo.cli import app as cli
from cogvideo.data.video import write_video
from cogvideo.reports.results import keep, read_results
from cogvideo.reports.sweep import report
from cogvideo.sweeps import table
from cogvideo.sweeps.spec import fingerprint, load

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "05_multi_frame_rate_ablation.ipynb"
COMMITTED = sorted((ROOT / "reports" / "ablations").glob("*.csv"))
VARIANTS = ["cogvideo", "overlap-2", "from-nothing"]
METRICS = ["fvd", "order", "loss"]


def shown(value: Any, digits: int = 4) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.{digits}g}"


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three variants and four seeds with random results; one point failed, one has no loss."""
    home, rng = tmp_path / "reports", np.random.default_rng(0)
    (home / "sweeps").mkdir(parents=True)
    shutil.copy(NOTEBOOK, tmp_path / "study.ipynb")
    file = home / "sweeps" / "mini.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "notebook": "study.ipynb", "question": "Who is better?",
                "variant": "variant", "baseline": "cogvideo",
                "parameters": {"steps": 4}, "grid": {"variant": VARIANTS}, "seeds": 4, "collect": METRICS,
            }
        )
    )  # fmt: skip
    found = load(file)
    for number, point in enumerate(found.points):
        folder = found.folder_of(point)
        folder.mkdir(parents=True)
        note = {
            "point": point.name, "status": "done", "fingerprint": fingerprint(found.notebook),
            "commit": "0123456789ab",
            "versions": {"python": "3.11", "torch": "2.13"}, "host": "here",
            "started": "2026-01-01T00:00:00.000+00:00",
            "seconds": float(rng.uniform(50, 90)), "peak_memory": int(rng.integers(10**9)),
        }  # fmt: skip
        worse = 100.0 * VARIANTS.index(point.parameters["variant"])
        metrics: dict[str, float | None] = {
            "fvd": 300 + worse + rng.normal(),
            "order": float(rng.integers(9)) / 8,
            "loss": rng.uniform(),
        }
        if number == 1:
            metrics["loss"], note["fingerprint"] = None, "of other code"
        if number == 2:
            note["commit"] += "-dirty"
        files = {}
        if point.parameters["seed"] == 2:
            clip = rng.integers(256, size=(8, 64, 64, 3), dtype=np.uint8)
            write_video(folder / "sample-0.mp4", clip, 8)
            (folder / "samples.json").write_text(json.dumps([{"prompt": "a <red> 3"}]))
            files = {"samples": ["sample-0.mp4"], "sample_prompts": "samples.json"}
        if number == 5:
            note |= {"status": "failed", "reason": "error", "error": "ValueError: <no>"}
        else:
            (folder / "result.json").write_text(json.dumps({"metrics": metrics, "files": files}))
        (folder / "point.json").write_text(json.dumps(note))
    return found


def check(page: Page, found: Any, variant: str, baseline: str, metrics: list[str]) -> None:
    """The page's tables against the sweep's table."""
    done = found[found.status.isin(["done", "changed"])]
    names, grid = list(dict.fromkeys(done[variant])), page.tables["summary"]
    if len(metrics) > len(names):  # metrics go down the page
        grid = [list(row) for row in zip(*grid, strict=True)]
    header, *rows = grid
    assert len(header) == 2 + len(metrics) and [row[0] for row in rows] == names
    for row in rows:
        some = done[done[variant] == row[0]]
        assert row[1] == str(some[metrics].count().max())
        for cell, metric in zip(row[2:], metrics, strict=True):
            mean, deviation, n = some[metric].mean(), some[metric].std(), some[metric].count()
            assert cell == (
                "–" if n == 0 else shown(mean, 3) + (f" ± {shown(deviation, 3)}" if n > 1 else "")
            )
    seeds = done.groupby(variant).seed.nunique()
    paired = bool(seeds[baseline] > 1 and (seeds.drop(baseline) > 1).any())
    assert ("differences" in page.tables) == paired  # a sweep's first seed has no differences yet
    rows = page.tables["differences"][1:] if paired else []
    titles = list(dict.fromkeys(row[0] for row in rows))
    told = {(row[0], row[1]): row[2:] for row in rows}
    by_seed, seen = done.pivot(index="seed", columns=variant), 0
    compared = [m for m in metrics if paired and done[m].count() > 1]
    for title, metric in zip(titles, compared, strict=True):
        pairs = {
            name: (by_seed[metric][name] - by_seed[metric][baseline]).dropna()
            for name in names
            if name != baseline
        }
        pairs = {name: pair for name, pair in pairs.items() if len(pair) > 1}
        raw = {name: p_of(pair) for name, pair in pairs.items()}
        corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
        low_is_better = title.endswith("↓")
        order = [float(told[title, name][0]) for name in [row[1] for row in rows if row[0] == title]]
        assert order == sorted(order, reverse=low_is_better)
        for name, pair in pairs.items():
            mean, low, high, level, p, n, said = told[title, name]
            assert (mean, p, n) == (shown(pair.mean(), 3), f"{corrected[name]:.2g}", str(len(pair)))
            level = 1 - 0.05 / (len(pairs) - sum(other < raw[name] for other in raw.values()))
            if corrected[name] >= 0.05:  # where Holm's test stopped
                level = 1 - 0.05 / sum(value >= 0.05 for value in corrected.values())
            half = stats.t.ppf((1 + level) / 2, len(pair) - 1) * pair.sem()
            assert (low, high) == (shown(pair.mean() - half, 3), shown(pair.mean() + half, 3))
            better = "worse" if (pair.mean() > 0) == low_is_better else "better"
            assert said == (better if corrected[name] < 0.05 else "not told apart")
            assert (said == "not told apart") == (float(low) <= 0 <= float(high))
            seen += 1
    assert seen == len(rows)
    _, *rows = page.tables["costs"]
    for row in rows:
        some = done[done[variant] == row[0]]
        memory = some.peak_memory.max() / 1e9
        assert row[1:] == [
            str(len(some)), shown(some.seconds.mean()), shown(some.seconds.sum()), shown(memory),
        ]  # fmt: skip
    header, *rows = page.tables["points"]
    varied = header[: header.index("seconds") - len(metrics)]
    assert set(varied) == {variant, "seed"}
    for row, (_, line) in zip(rows, done.iterrows(), strict=True):
        assert row == [
            *(str(line[name]) for name in varied), *(shown(line[name]) for name in metrics),
            shown(line.seconds),
        ]  # fmt: skip
    failed = found[found.status.isin(["failed", "incomplete"])]
    assert [row[0] for row in page.tables.get("failed", [[]])[1:]] == list(failed.point)


def p_of(pair: Any) -> float:
    if pair.std() == 0:  # scipy would warn
        return float(pair.mean() == 0)
    tested: Any = stats.ttest_1samp(pair, 0)
    return float(tested.pvalue)


def holm(p: list[float]) -> list[float]:
    """From the definition: the k-th smallest of m is worth (m - k + 1) p, at least what a smaller one is."""
    return [max(min(1.0, sum(other >= q for other in p) * q) for q in p if q <= value) for value in p]


def test_every_number_is_in_the_table(sweep, tmp_path):
    page_of = {}
    for name, path in {"file": sweep.file, "folder": sweep.folder}.items():
        page_of[name] = Page(report(path, tmp_path / f"{name}.html").read_text("utf-8"))
    csv = table.write(sweep)
    kept = keep(sweep.file, tmp_path / "reports" / "ablations")
    assert kept.read_bytes() == csv.read_bytes()
    page_of["table"] = Page(report(kept, tmp_path / "table.html").read_text("utf-8"))
    for page in page_of.values():
        check(page, pd.read_csv(csv), "variant", "cogvideo", METRICS)
        assert all(source.startswith("data:") for source in page.loaded) and len(page.loaded) >= 2
    for page in (page_of["file"], page_of["table"]):
        assert page.tables["clips"][1][0] == "a <red> 3"
        assert len(page.loaded) == 2 + 2 * len(VARIANTS)  # plots; a video and a strip for each clip
    assert page_of["file"].tables["failed"][1][3] == "ValueError: <no>"
    assert "cogvideo sweep run reports/sweeps/mini.yaml" in page_of["table"].text
    assert "git checkout 0123456789ab\n" in page_of["table"].text
    assert "Commits of the points: 0123456789ab, 0123456789ab-dirty; -dirty marks" in page_of["table"].text
    assert (
        "12 points: 11 done, 1 failed." in page_of["table"].text
    )  # what was done by other code is done, too


def test_other_parameters_are_compared_where_they_are_the_same(sweep, tmp_path):
    """Two numbers of steps: rows of both in the summary, differences within each."""
    values = yaml.safe_load(sweep.file.read_text())
    del values["parameters"]
    sweep.file.write_text(
        yaml.safe_dump(values | {"grid": {"variant": VARIANTS[:2], "steps": [4, 8]}, "seeds": 2})
    )
    found = load(sweep.file)
    rows = [
        {
            "point": p.name,
            "status": "done",
            **p.parameters,
            "fvd": float(i),
            "order": i**2 / 64,
            "loss": 1.0,
            "seconds": 1.0,
        }
        for i, p in enumerate(found.points)
    ]
    csv = tmp_path / "reports" / "mini.csv"
    pd.DataFrame(rows).to_csv(csv, index=False)
    page = Page(report(csv, tmp_path / "x.html").read_text("utf-8"))
    assert [(row[0], row[2]) for row in page.tables["summary"][1:]] == [
        ("cogvideo, steps 4", "0.5 ± 0.707"), ("cogvideo, steps 8", "4.5 ± 0.707"),
        ("overlap-2, steps 4", "2.5 ± 0.707"), ("overlap-2, steps 8", "6.5 ± 0.707"),
    ]  # fmt: skip
    fvd = [row for row in page.tables["differences"][1:] if row[0] == "FVD ↓"]
    assert [(row[1], row[2], row[8]) for row in fvd] == [
        ("overlap-2, steps 4", "2", "worse"), ("overlap-2, steps 8", "2", "worse"),
    ]  # fmt: skip
    raw = [float(stats.ttest_rel([i**2, (i + 1) ** 2], [(i - 2) ** 2, (i - 1) ** 2]).pvalue) for i in (2, 6)]
    told = [row[6] for row in page.tables["differences"][1:] if row[0] == "phases in order ↑"]
    assert told == [f"{p:.2g}" for p in holm(raw)]  # over both numbers of steps
    assert len(page.loaded) == 3 and "Over steps" in page.text


def test_names_that_are_the_table_s_own(sweep):
    """A metric called as a column of the table, or as a parameter, is read from its own column."""
    values = yaml.safe_load(sweep.file.read_text())
    sweep.file.write_text(yaml.safe_dump(values | {"collect": ["seconds", "steps", "fvd"]}))
    for i, point in enumerate(load(sweep.file).points):
        measured = {"metrics": {"seconds": 1.0 + i, "steps": 2.0 + i, "fvd": 3.0 + i}}
        (sweep.folder_of(point) / "result.json").write_text(json.dumps(measured))
    results = read_results(sweep.file)
    assert results.metrics == ["metric_seconds", "metric_steps", "fvd"]
    assert [results.usable[0][name] for name in results.metrics] == [1.0, 2.0, 3.0]
    assert results.usable[0]["steps"] == 4 and results.usable[0]["seconds"] > 50


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_reports_say_what_their_tables_say(path):
    results, found = read_results(path), pd.read_csv(path)
    html = path.with_suffix(".html")
    assert html.stat().st_size < 15e6
    page = Page(html.read_text("utf-8"))
    assert results.variant is not None
    check(page, found, results.variant, results.baseline, results.metrics)
    assert all(source.startswith("data:") for source in page.loaded)


def test_the_command_and_its_mistakes(sweep, tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cogvideo", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    (tmp_path / "notes.md").write_text("The *point* <script>")
    out = tmp_path / "x.html"
    code, said, _ = run(sweep.file, "-o", out, "--notes", tmp_path / "notes.md")
    assert code == 0 and said.strip() == str(out)
    assert "The <em>point</em> &lt;script&gt;" in out.read_text("utf-8")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    shutil.copy(sweep.file, tmp_path / "bad.yaml")
    for arguments, words in (
        ([], "Give the results"),
        ([sweep.file, "--weights", "demo"], "not both"),
        ([tmp_path / "none.yaml"], "There is no"),
        ([tmp_path / "bad.csv"], "no table of a sweep"),
        ([tmp_path / "study.ipynb"], "no sweep file"),
        ([tmp_path], "no sweep file"),
        ([sweep.file, "--notes", tmp_path / "none.md"], "cannot be read"),
        ([sweep.file, "-o", tmp_path / "none" / "x.html"], "cannot be written"),
        (["--weights", "demo", "-n", 0], "at least 1"),
        (["--weights", "nowhere"], "no weights at nowhere"),
    ):
        code, said, error = run(*arguments)
        assert code == 2 and said == "" and words in error and error.count("\n") == 1, arguments


def test_without_results_there_is_no_report(sweep):
    for point in sweep.points:
        (sweep.folder_of(point) / "result.json").unlink(missing_ok=True)
        note = sweep.folder_of(point) / "point.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"status": "failed"}))
    with pytest.raises(CogVideoError, match="No point of mini is done"):
        read_results(sweep.file)
    shutil.rmtree(sweep.folder)
    with pytest.raises(CogVideoError, match="sweep run"):
        read_results(sweep.file)
