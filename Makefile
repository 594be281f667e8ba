# make demo    the whole method on the embedded default: signs, training, samples, scores
# make test    style, types and tests: what CI runs
# make test-browser   the web pages in a real browser (Debian: apt-get install chromium)
# make test-long   the tests that take many minutes: 32 kills, 100 steps against 50 and 50, the SLURM script
# All set up .venv first; with another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test tests test-browser test-long lint style types format clean .venv

demo: $(INSTALLED)
	$(BIN)/python tools/demo.py

# Types are checked beside the tests, which leave a core alone now and then; one that fails lets the other end.
test: style
	+@$(MAKE) --no-print-directory -j 2 types tests

# What trains comes first: last, one worker would wait for the other's few long tests. pytest forgets a folder that another
# one holds, so the rest is listed without it.
tests: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
	  tests/training $(filter-out tests/training/ tests/support/ tests/__pycache__/,$(sort $(wildcard tests/*/ tests/test_*.py)))

test-browser: $(INSTALLED)
	@$(PIP) install -c constraints.txt playwright
	$(BIN)/python -m pytest tests/webui/test_page.py tests/eval/test_rating_page.py

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

lint: style types

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv: $(INSTALLED)

# The build backend comes first and pinned, and builds are not isolated: so nothing unpinned gets in.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: vlad needs Python 3.11 or newer, and $(PYTHON) is not; name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

# Caches and build outputs; never what runs have made (runs/, data/, samples/).
clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find tests tools vlad -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf __pycache__
