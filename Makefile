# Python 3.11 or newer and make are all that is needed. A target that is set up already is not set up again.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
EXTRAS := dev,peft,quant,optuna,joblib,trackio,plots
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	$(NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(NEW_ENOUGH)
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python $(INSTALL) --constraint constraints-lowest.txt --editable '.[$(EXTRAS)]'
	@touch $@

.PHONY: setup
setup: $(READY) ## make the virtual environment .venv with the pinned dependencies

.PHONY: sweep
sweep: $(READY) ## run the default sweep: learning rate x effective batch size on the embedded demo
	$(BIN)/sft sweep experiment=demo_grid

.PHONY: train
train: $(READY) ## run one training on the embedded demo
	$(BIN)/sft train

.PHONY: test
test: $(READY) browser ## run the whole test suite
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

.PHONY: test-lowest
test-lowest: $(LOWEST)/.ready ## run the fast tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow" -W default # old versions warn of what they mended since

.PHONY: coverage
coverage: $(READY) browser ## run the whole test suite and show which lines it reaches (htmlcov/index.html)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov=sft_experiments --cov-report=term --cov-report=html

# The report is tested in a real browser. Debian's is installed where that is possible without a password; elsewhere
# those tests are skipped, loudly, unless SFT_REQUIRE_BROWSER=1.
.PHONY: browser
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium chromium-driver >/dev/null; } || \
	  echo "no chromium and chromedriver here: the browser tests of the report will be skipped"

# A pretrained chat model of 135 million weights is trained too, where it was made: in the cache, once, in about a minute.
# Elsewhere those tests are skipped, loudly, unless SFT_REQUIRE_REAL_MODEL=1.
.PHONY: real-model
real-model: $(READY) ## make the pretrained model of the tests: 93 MB to download, 540 MB on disk
	$(BIN)/python -m tests.real_model

.PHONY: bench
bench: $(READY) ## measure against what one would run instead: an hour and a half on two cores (docs/performance.md)
	$(BIN)/python -m benchmarks.run_all $(BENCH)

.PHONY: bench-gpu
bench-gpu: $(READY) ## the same for a GPU, in nine minutes
	$(BIN)/python -m benchmarks.gpu_suite $(BENCH)

.PHONY: zoo
zoo: $(READY) ## build every causal architecture of transformers small: loss head, padding, packing (docs/models.md)
	$(BIN)/python -m benchmarks.zoo $(ZOO)

.PHONY: check
check: $(READY) ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(READY) ## put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## remove the virtual environments and caches (outputs stay)
	rm -rf $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
