# ser: every target calls `install` first; everything is idempotent.
PYTHON ?= python3
BIN := .venv/bin
STORE ?= features
ONLY ?=

.PHONY: help install demo features test test-slow check bench clean

help:
	@echo "make demo                           five features, two trained models and a table, under demo/"
	@echo "make features IEMOCAP=/path/to/it   the real job (CORPUS=... for other corpora)"
	@echo "make test | test-slow | check       tests, torture tests, linters"
	@echo "make bench [ONLY=store]             ours against the plain way, side by side"

# torch goes first: with a CPU build in place nothing pulls the CUDA packages in.
install: $(BIN)/.installed
$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,cluster]'
	touch $@

demo: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/demo.sh

# With neither IEMOCAP nor CORPUS this is the demo corpus, and says so.
features: install
ifneq ($(IEMOCAP),)
	$(BIN)/ser features "$(IEMOCAP)" --format iemocap --store "$(STORE)" $(ARGS)
else ifneq ($(CORPUS),)
	$(BIN)/ser features "$(CORPUS)" --store "$(STORE)" $(ARGS)
else
	@echo "No IEMOCAP=... and no CORPUS=...: extracting the synthetic demo corpus with random weights instead."
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/demo.sh features
endif

test: install
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

# Type checkers need the root under the package's name.
check: install
	mkdir -p .links && ln -sfn .. .links/ser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p ser

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ONLY)

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache build *.egg-info
