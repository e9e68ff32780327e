"""Every command in the README and in docs/ can be run as it is written; what takes long is checked, not run.

A command of `cogvideo` is parsed by the program's own parser, with the types of its options. Short ones are
run, in a folder that has the files they name. The README's Python is run as a whole.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from test_project import ROOT, documents, planned
from typer.core import TyperGroup
from typer.main import get_command

from cogvideo.cli.app import app
from cogvideo.data.video import read_video

TEXTS = [
    *documents(),
    *(ROOT / name / "README.md" for name in ("notebooks", "reports")),
    ROOT / "CONTRIBUTING.md",
]
FIRST_WORDS = {
    "cogvideo", "make", "source", "torchrun", "papermill", "git", "cd", "pip", ".venv/bin/python",
    ".venv/bin/pre-commit",
}  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """The words of each command in shell blocks, and of `cogvideo ...` and `make ...` between backticks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [" ".join(part.split()) for part in re.findall(r"(?<!`)`((?:cogvideo|make) [^`]+)`(?!`)", text)]
    parts = [part for line in lines for part in line.split(" && ")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


WRITTEN = sorted({shlex.join(words) for text in TEXTS for words in commands(text.read_text("utf-8"))})


def test_there_are_commands():
    assert len(WRITTEN) > 30 and {shlex.split(line)[0] for line in WRITTEN} <= FIRST_WORDS


@pytest.mark.parametrize("line", [line for line in WRITTEN if re.search(r"(^| )cogvideo ", line)])
def test_a_command_of_the_program_is_parsed(line, tmp_path, monkeypatch):
    """Names, options and the types of their values; paths need not be there."""
    monkeypatch.chdir(tmp_path)
    for name in ("benchmarks", "fvd"):  # that the repository has
        (tmp_path / "reports" / name).mkdir(parents=True)
    words = shlex.split(line)
    command, words = get_command(app), words[words.index("cogvideo") + 1 :]
    context = command.make_context("cogvideo", [], resilient_parsing=True)
    while isinstance(command, TyperGroup) and words:
        found = command.get_command(context, words[0])
        assert found is not None or words[0].startswith("--"), f"{line}: there is no {words[0]}"
        if found is None:
            return
        context = found.make_context(words.pop(0), [], parent=context, resilient_parsing=True)
        command = found
    whole = bool(words) and words[-1] != "--help"  # others name a command, or ask for its help
    command.make_context(command.name, [*words], parent=context, resilient_parsing=not whole)


@pytest.mark.parametrize("line", [line for line in WRITTEN if line.startswith("make ")])
def test_a_target_is_there(line):
    assert planned(line.split()[1])


SHORT = [
    'cogvideo generate "a lion drinks milk slowly" -o lion.mp4 --seconds 0.5 --seed 0',
    "cogvideo generate --prompts prompts.txt --out-dir made --seconds 0.5",
    "cogvideo data make-theatre clips --clips 2 --seed 0",
    "cogvideo data inspect clips",
    "cogvideo data tokenize clips tokens/stage1 --weights demo",
    "cogvideo weights list",
    "cogvideo bench full-size --plan",
    "cogvideo doctor",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("documents")


@pytest.mark.parametrize("line", SHORT)
def test_a_short_command_runs(run, folder, monkeypatch, line):
    """In this order, in one folder: each is written in a document, but for its settings."""
    words = shlex.split(line)
    written = [shlex.split(other) for other in WRITTEN]
    assert any(other[:3] == words[:3] for other in written), line
    monkeypatch.chdir(folder)
    (folder / "prompts.txt").write_text("a cat drinks tea\n\na bear rings a bell\n", "utf-8")
    code, out, err = run(*words[1:])
    assert code == 0 and out, err


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (program,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    assert len(program.splitlines()) <= 11
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"seconds=\d", "seconds=0.5", program), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-0.gif", "clip-1.gif", "lion.mp4"]
    assert read_video(tmp_path / "lion.mp4")[0].shape == (5, 192, 192, 3)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(re.sub(r"\]\([^)]*\)|[|#*`]", " ", text).split()) < 850


def test_figures_of_the_demo_weights_stand_in_the_model_card_alone():
    card = (ROOT / "cogvideo" / "weights" / "demo" / "README.md").read_text("utf-8")
    score = re.findall(r"[\d.]+ %", card.partition("Score:")[2].partition("\n\n")[0])
    assert score and not any(figure in (ROOT / "README.md").read_text("utf-8") for figure in score)


def test_the_site_has_every_document_and_every_notebook():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = re.findall(r"[\w./-]+\.(?:md|ipynb)", str(site["nav"]))
    assert len(listed) == len(set(listed)) and all((ROOT / page).is_file() for page in listed)
    wanted = [*(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    missing = {str(page.relative_to(ROOT)) for page in wanted} - set(listed)
    assert missing <= {"docs/pictures.md", "docs/scale.md"}  # how pictures are made


def test_the_site_fetches_nothing():
    """Its offline plugin adds a script of another server, unless the project brings that one itself."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    own = site["extra"]["polyfills"] + site["extra_css"] + site["extra_javascript"]
    assert all((ROOT / file).is_file() for file in own) and not site["theme"]["font"]
    assert "offline" in site["plugins"] and any("iframe-worker" in file for file in own)


def test_the_index_of_the_notebooks_is_complete_and_in_order():
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", (ROOT / "notebooks" / "README.md").read_text("utf-8"))
    assert linked == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
