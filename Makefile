# Two commands: `make demo` makes videos from sentences, `make test` checks everything. Both set up .venv first.
# PYTHON is the interpreter that .venv is made with: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
DEMO := reports/runs/demo
CHECKED := cogvideo tests notebooks
PYTEST := pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test coverage lint lint-js lab notebooks docs wheel demo-weights pictures clean
.DELETE_ON_ERROR:

demo: .venv/installed
	@mkdir -p $(DEMO)
	@echo "Making videos from sentences:"  # the bars are the notebook's; the kernel's own remarks go to log.txt
	@$(BIN)/python -m papermill notebooks/01_text_to_video.ipynb $(DEMO)/text_to_video.ipynb -k python3 \
		-p output_dir $(DEMO) --log-level ERROR --no-progress-bar --stdout-file - --stderr-file - \
		2> $(DEMO)/log.txt || { cat $(DEMO)/log.txt; exit 1; }
	@echo "Done. Open this page in a browser: $(CURDIR)/$(DEMO)/index.html"

# One process a core, each with one thread: most tests are too small for more.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m $(PYTEST)

# Which lines of the package the tests run; at least 90 % of them. One room alone: make coverage TESTS=tests/model.
coverage: .venv/installed
	@rm -rf build/coverage && mkdir -p build/coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m $(PYTEST) $(TESTS)
	@$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --skip-covered --sort=miss $(if $(TESTS),,--fail-under=90)

# -p: this tree's settings, whatever lies in the folders above it.
lint: .venv/installed
	$(BIN)/python -m ruff check $(CHECKED)
	$(BIN)/python -m ruff format --check $(CHECKED)
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pyright -p pyproject.toml
	@$(MAKE) --no-print-directory lint-js

# The explorer's JavaScript is typed by its comments; tsc reads them. It comes by npm, once, and writes nothing.
TSC := .venv/node_modules/typescript/bin/tsc
lint-js:
	@if [ ! -f $(TSC) ] && command -v npm > /dev/null; then \
		npm install --silent --no-audit --no-fund --no-save --prefix .venv typescript@5.9.3 > /dev/null 2>&1; fi; \
	if [ -f $(TSC) ] && command -v node > /dev/null; then node $(TSC) -p cogvideo/explore/explorer/app/tsconfig.json; \
	else echo "The explorer's JavaScript was not checked: node, or typescript from npm, is missing."; fi

# The notebooks, to be read in the order of their numbers: notebooks/README.md. Other options of Jupyter are given as
# make lab LAB="--no-browser --allow-root", which a container needs.
lab: .venv/installed
	$(BIN)/python -m jupyter lab --notebook-dir=. $(LAB) notebooks/README.md

# What executed notebooks leave out: the stderr of their cells, which is progress bars.
define WITHOUT_BARS
import sys, nbformat
for path in sys.argv[1:]:
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = [output for output in cell.outputs if output.get('name') != 'stderr']
    nbformat.write(notebook, path)
endef
export WITHOUT_BARS

# All of them executed, to be read in a browser: reports/runs/notebooks/*.html, which fetch nothing (but the widget of 07).
notebooks: .venv/installed
	$(BIN)/python -m jupyter nbconvert --execute --to notebook --output-dir reports/runs/notebooks notebooks/*.ipynb
	@$(BIN)/python -c "$$WITHOUT_BARS" reports/runs/notebooks/*.ipynb
	$(BIN)/python -m jupyter nbconvert --to html --HTMLExporter.mathjax_url= --HTMLExporter.require_js_url= \
		reports/runs/notebooks/*.ipynb
	@echo "Open reports/runs/notebooks/*.html"

# docs/ as a site without a network, with the notebooks as `make notebooks` left them. A broken link is an error.
docs: .venv/installed
	@rm -rf build/docs && mkdir -p build/docs
	@tar -cf - --exclude='*.safetensors' --exclude=__pycache__ *.md LICENSE CITATION.cff pyproject.toml docs notebooks \
		configs reports/*.md reports/sweeps cogvideo tests/test_project.py | tar -xf - -C build/docs
	@cp reports/runs/notebooks/*.ipynb build/docs/notebooks/ 2>/dev/null || true
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict --config-file mkdocs.yml
	@echo "Open build/site/index.html"

# A wheel of less than 40 MB that makes a clip from an empty environment, without extras and with them.
wheel: .venv/installed
	@rm -rf build/wheel && mkdir -p build/wheel/clips
	$(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps -w build/wheel .
	@test -z "$$(find build/wheel -name '*.whl' -size +40000k)" || { echo "The wheel is over 40 MB."; exit 1; }
	$(PYTHON) -m venv build/wheel/empty
	for extras in '' '[train,notebooks,sweeps]'; do \
		build/wheel/empty/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt \
			"$$(echo build/wheel/*.whl)$$extras" || exit 1; \
		(cd build/wheel/clips && ../empty/bin/cogvideo generate "a lion drinks milk" --seconds 0.5 -o "clip$$extras.mp4") \
			|| exit 1; \
	done
	@ls -l build/wheel/*.whl build/wheel/clips

# The whole recipe from nothing, then its score; the same command resumes a killed run.
demo-weights: .venv/installed
	$(BIN)/python -m cogvideo train configs/demo.yaml
	$(BIN)/python -m cogvideo evaluate alignment --weights demo -n 200

# The README's pictures, of the weights that are there: docs/demo.png, demo.webp, and with Chromium explorer.png.
pictures: .venv/installed
	$(BIN)/python -m cogvideo.theatre.pictures docs

# Torch comes first and alone: its pinned version decides what the others may bring. I3D is for FVD; all else works
# without it.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "Python 3.10 or newer is needed and $(PYTHON) is none: run make with PYTHON=/path/to/python3."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing: install it (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[train,notebooks,sweeps,dev]'
	-$(BIN)/python -m cogvideo weights get i3d
	@touch $@

# Leaves reports/runs and runs alone: they may hold hours of work.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
