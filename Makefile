# Two commands on a fresh machine: `make demo` and `make test`. Both set up what they need in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints-cpu.txt
PROJECTS = pyproject.toml lab/pyproject.toml constraints-cpu.txt
export HF_HUB_OFFLINE = 1
unexport PYTHONDONTWRITEBYTECODE  # the tests start many processes, which need not compile the same modules each

.PHONY: demo test families lint docs benchmarks picture table clean

demo: $(VENV)/.lab  ## the main job on real input: table on the terminal, report in demo/report.html
	$(BIN)/steadyflow demo --out demo

test: $(VENV)/.dev lint  ## ruff, pyright and the test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not families"

families: $(VENV)/.dev  ## every family of pipelines, tiny and random, of tests/zoo
	$(BIN)/python -m pytest -n 2 --dist worksteal -m families

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs  ## the documentation site, in site/
	$(BIN)/mkdocs build --strict

benchmarks: $(VENV)/.dev  ## all published figures, into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

picture: $(VENV)/.lab  ## the picture of the README
	$(BIN)/python scripts/readme_picture.py

table: $(VENV)/.lab  ## the table of solvers in docs/solvers.md, from the registry
	$(BIN)/python scripts/readme_table.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: $(VENV)/bin/python $(PROJECTS)
	$(PIP) -e . -e ./lab
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(PROJECTS)
	$(PIP) -e ".[dev,peers]" -e ./lab
	$(PIP) --no-deps torchcfm==1.0.7 k-diffusion==0.1.1.post1 azula==0.11.1
	@touch $@ $(VENV)/.lab

$(VENV)/.docs: $(VENV)/bin/python $(PROJECTS)
	$(PIP) -e ".[data,plots,diffusers,docs]" -e ./lab
	@touch $@ $(VENV)/.lab

clean:
	rm -rf $(VENV) demo site build dist .pytest_cache .ruff_cache
