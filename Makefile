# One command each, and each does all of its own set-up: a virtual environment in .venv, the install, the job.
# Needs Python >= 3.10 and make. `make PYTHON=python3.12 demo` chooses another Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= phantom
WORKERS ?= 2
# A browser test waits more than it works, so three at a time share two cores better than two.
BROWSERS ?= 3
NB_SKIP ?= ^[_.]
# One thread a worker while several notebooks run at once: more would only make them wait for each other.
NB_ENV := CMUNEXT_QUIET=1 OMP_NUM_THREADS=1 MPLBACKEND=agg
# Containers often set this, and then each of some hundred processes would compile torch and matplotlib anew: 5 s of CPU every time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo lab test check clean-notebooks site test-notebooks test-python test-labs test-colab test-browser test-wheel browser docs notebooks readme export bench clean
help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cmunext_nb needs Python >= 3.10, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.user: $(BIN)/python settings.ini setup.py
	@echo "Installing into $(VENV) (PyTorch is large: some minutes the first time) ..."
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.lab: $(VENV)/.user
	$(BIN)/python -m pip install -q -e ".[lab,explain]"
	@touch $@

$(VENV)/.dev: $(BIN)/python settings.ini setup.py
	$(BIN)/python -m pip install -q $(if $(CI),--no-compile) -e ".[dev]"  # half a minute for 15,000 files, most of which no test imports; the others are compiled once, at their first import
	@touch $(VENV)/.user $@

demo: $(VENV)/.user  ## train CMUNeXt-S on the bundled synthetic ultrasound, report IoU and F1, write a picture (DATA=busi: real scans)
	$(BIN)/python -m cmunext_nb.demo --data $(DATA)

# Root is the only user of many a container, and Jupyter asks to be told that this is meant.
lab: $(VENV)/.lab  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) nbs/index.ipynb

# Tests that wait (for a browser, for a kernel that starts) leave a core to tests that compute, so two jobs run side by side,
# each with its own workers. The site is built once: what is checked is what the browser opens.
# In CI there is a browser, which runs the lab notebooks from the top as well: once is enough.
SITE :=
JOBS := test-browser test-python test-notebooks test-labs test-wheel
# A browser and npm come from the system's packages, Python's from pip: both at once where CI has to fetch them.
test:           ## notebooks, tests, site and wheel, as CI runs them (beside it CI runs Colab, the demo and an empty environment)
	$(MAKE) -j2 $(VENV)/.dev $(if $(CI),browser)
	@date +"%T  installed"
	$(MAKE) clean-notebooks
	@date +"%T  notebooks are clean"
	$(MAKE) -j2 $(JOBS) SITE=$(CURDIR)/artifacts/site $(if $(CI),NB_SKIP='^([_.]|4[0-4]_|50_)')
	@date +"%T  All checks passed."

browser:        # a Chromium and npm, where they are missing and CI may install them; test-browser says so if that failed
	-@$(PYTHON) .ci/browser.py

check: clean-notebooks site  ## export and clean leave no diff, README equals index, notebooks are clean, the site builds

clean-notebooks: $(VENV)/.dev
	$(BIN)/python .ci/notebooks.py check

site: $(VENV)/.dev
	$(BIN)/python .ci/site.py --tool smalldocs
	@date +"%T  the site builds"

test-notebooks: $(VENV)/.dev  ## every notebook runs from the top
	$(NB_ENV) $(BIN)/nbdev_test --path nbs --n_workers $(WORKERS) --do_print --skip_file_re '$(NB_SKIP)'
	@date +"%T  notebooks run"

test-python: $(VENV)/.dev  ## the tests that would clutter a notebook
	CMUNEXT_QUIET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
	@date +"%T  tests pass"

test-labs: $(VENV)/.dev  ## the labs under the ipywidgets of Colab (7.7); the tests above run them under the newest
	CMUNEXT_QUIET=1 OMP_NUM_THREADS=1 $(BIN)/python .ci/old_widgets.py --workers $(WORKERS) tests/test_lab*.py
	@date +"%T  the labs run under old widgets"

test-colab: $(VENV)/.dev  ## the notebooks that are meant for Colab, with its versions and without the checkout (some 10 minutes; `make test` leaves it out)
	$(BIN)/python .ci/colab_like.py

test-browser: $(VENV)/.dev  ## every lab in JupyterLab and a headless browser; screenshots in artifacts/browser
	$(BIN)/python .ci/browser.py
	$(if $(SITE),$(BIN)/python .ci/site.py --tool smalldocs --out $(SITE))
	CMUNEXT_QUIET=1 OMP_NUM_THREADS=1 CMUNEXT_SITE=$(SITE) $(BIN)/python -m pytest tests/browser -m browser -n $(BROWSERS) --dist loadgroup
	@date +"%T  the browser shows what it should"

test-wheel: $(VENV)/.dev  ## the built wheel, installed on its own, imports and predicts
	$(BIN)/python .ci/wheel.py
	@date +"%T  the wheel works"

docs: $(VENV)/.dev  ## build the site: with Quarto where there is one, else with smalldocs
	$(BIN)/python .ci/site.py --out _docs

notebooks: $(VENV)/.dev  ## run every notebook and keep its outputs; then export, clean, README
	$(BIN)/nbdev_export  # lab notebooks open with what they define further down
	$(BIN)/python .ci/notebooks.py run
	$(MAKE) export readme

export: $(VENV)/.dev  ## write cmunext_nb/ from the notebooks and clean them
	$(BIN)/python .ci/colab.py
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: $(VENV)/.dev  ## write README.md from nbs/index.ipynb
	$(BIN)/python .ci/notebooks.py readme

# Those that train (zoo_overfit, time_to_accuracy), want trained networks or BUSI (ensemble, agreement, scales) or write what is shipped (comparison) are called by hand.
BY_HAND := machine zoo_overfit time_to_accuracy ensemble agreement scales comparison
bench: $(VENV)/.dev  ## measure speed, as ratios in one run: benchmarks/*.json, and for some a print (augment, batch_norm)
	set -e; for script in $(filter-out $(BY_HAND:%=benchmarks/%.py),$(wildcard benchmarks/*.py)); do \
		case $$script in */train_step.py) more="--models cmunext_s cmunext --out benchmarks/train_step.json";; *) more=;; esac; $(BIN)/python $$script $$more; done

clean:          ## remove what make made, except the environment
	rm -rf build dist _docs demo *.egg-info
