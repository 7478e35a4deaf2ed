# make demo: set up and run the pocket study      make test: set up and run the tests
PYTHON ?= python3
BIN := .venv/bin
OUT ?= pocket-study
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-input -c constraints.txt

.PHONY: demo test slow lint docs clean

demo: .venv/.package
	@$(BIN)/paretune demo --out $(OUT)

test: .venv/.development
	$(BIN)/python -m pytest -m "not shared and not browser and not slow"

# Whole studies: killed twenty times, and every command of the README in a fresh clone
slow: .venv/.development
	$(BIN)/python -m pytest -m slow

lint: .venv/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is generated from the code, written anew
docs: .venv/.development
	$(BIN)/paretune schema > docs/study.schema.json
	$(BIN)/python scripts/make_mistakes_page.py
	$(BIN)/python scripts/make_measured_page.py
	$(BIN)/python scripts/make_performance_page.py
	$(BIN)/python scripts/make_reliability_page.py
	$(BIN)/python scripts/make_sandbox_page.py
	$(BIN)/python scripts/make_score_card.py
	$(BIN)/python scripts/make_statistics_page.py
	$(BIN)/python scripts/make_study_page.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find paretune tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A file in .venv marks each step as done, so that a second call goes straight to work.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: give another with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	@touch $@

# PyTorch comes by itself and first: the rest then finds the version it has to fit.
.venv/.torch: .venv/.created constraints.txt
	@echo "setting up .venv (once; this downloads PyTorch)"
	@$(PIP) torch==2.13.0
	@touch $@

.venv/.package: .venv/.torch pyproject.toml
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable .
	@touch $@

.venv/.development: .venv/.package
	@$(PIP) --no-build-isolation --editable '.[dev,ray,slurm,track]'
	@touch $@
