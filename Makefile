# ser: every target calls `install` first; everything is idempotent.
PYTHON ?= python3
BIN := .venv/bin
SER := $(BIN)/ser
STORE ?= features
ONLY ?=

# Some machines forbid Python to keep what it compiles: every process would then compile ser anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help install demo demo-features features papers test test-fast test-real test-slow test-lowest test-newest test-praat check bench clean

help:
	@echo "make demo                           five features, two trained models and a table, under demo/"
	@echo "make features IEMOCAP=/path/to/it   the real job (CORPUS=... for other corpora)"
	@echo "make papers IEMOCAP=/path/to/it     every table of the papers beside ours (ONLY=msmser for a part)"
	@echo "make test-fast | test | test-slow   unit tests, all tests, torture that takes minutes"
	@echo "make test-real [FULL=1]             Whisper's real weights on real speech: exactness, and scores beside scikit-learn's"
	@echo "make test-lowest | test-newest      all tests on the oldest and the newest packages that pyproject.toml allows"
	@echo "make test-praat                     plugins/ser-praat, installed beside ser in .plugins/"
	@echo "make check                          linters, types, and the documentation as a site, in .docs/"
	@echo "make bench [ONLY=store]             ours against the plain way, side by side"

# torch goes first: with a CPU build in place nothing pulls the CUDA packages in. pip would compile all on one core;
# some packages hold files that do not compile.
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile -c constraints.txt
install: $(BIN)/.installed
$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev,cluster,smile]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

demo: install
	$(SER) demo demo
	@echo "corpus: demo/corpus · checkpoints: demo/checkpoints · store: demo/features · runs: demo/runs"

demo-features: install
	$(SER) corpus demo demo/corpus
	$(SER) weights demo demo/checkpoints
	$(SER) features demo/corpus --store demo/features $(foreach m,hubert mpnet bert,--model $(m)=demo/checkpoints/$(m)-random)

# The encoders are downloaded, and converted where they are published as pickles alone (ARGS=--no-convert refuses).
# With neither IEMOCAP nor CORPUS this is the demo corpus, and says so.
ifneq ($(IEMOCAP),)
features: install
	$(SER) features "$(IEMOCAP)" --format iemocap --store "$(STORE)" $(ARGS)
else ifneq ($(CORPUS),)
features: install
	$(SER) features "$(CORPUS)" --store "$(STORE)" $(ARGS)
else
features: demo-features
	@echo "Neither IEMOCAP=... nor CORPUS=... was given: these are the features of the synthetic demo corpus, with random weights."
endif

# All tables of the papers, under every way to choose the epoch. The demo's run shows that it works: one fold, two epochs.
ifneq ($(IEMOCAP),)
papers: install
	$(BIN)/python -m benchmarks.papers "$(IEMOCAP)" --store "$(STORE)" --only "$(ONLY)" $(ARGS)
else
papers: install
	$(SER) corpus demo demo/corpus
	$(SER) weights demo demo/checkpoints
	$(BIN)/python -m benchmarks.papers demo/corpus --store demo/features --out demo/papers --page demo/reproduction.md \
	  --only "$(ONLY)" $(foreach m,hubert mpnet bert,--model $(m)=demo/checkpoints/$(m)-random) \
	  $(foreach m,wav2vec2 wavlm,--model $(m)=demo/checkpoints/hubert-random) \
	  --folds 1 --epochs 2 --seeds 1 $(foreach s,d_model=64 channels=2 frames=200,--set $(s)) $(ARGS)
	@echo "No IEMOCAP=... was given: this is the synthetic demo corpus, with random weights: demo/reproduction.md"
endif

# Unit tests: no processes, no browser, no dask, no training of the demo.
# Each process takes a half as it stands, and then from the other's: what a file prepares is made once.
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not heavy and not real" $(ARGS)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Fetches Whisper base's weights (130 MB), which stay in SER_REAL, by default a folder of the temporary one.
test-real: install
	OMP_NUM_THREADS=1 SER_REAL_FULL=$(FULL) $(BIN)/python -m pytest -m real -n 0 -s --timeout 1800 tests/test_real.py $(ARGS)

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

# Each in a virtual environment of its own, with the pinned torch, which goes in first and alone: it is the CPU build
# where there is one, and what it needs comes from pyproject.toml's bounds as the rest does.
test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
.venv-%/bin/.installed: pyproject.toml constraints.txt
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q --disable-pip-version-check --no-compile --no-deps -c constraints.txt torch uv
	grep '^torch==' constraints.txt > .venv-$*/torch.txt
	.venv-$*/bin/uv pip install -q --python .venv-$*/bin/python --resolution $(RESOLUTION) -c .venv-$*/torch.txt \
	  -e '.[dev,cluster,smile]'
	touch $@

test-lowest test-newest: test-%: .venv-%/bin/.installed
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

# A package of its own under the GPL, which ser never imports: it is installed beside the virtual environment, not into it.
.plugins/.installed: $(BIN)/.installed $(wildcard plugins/ser-praat/*)
	rm -rf .plugins
	mkdir .plugins
	cp -R plugins/ser-praat .plugins/source
	$(PIP) --no-deps --target .plugins/site praat-parselmouth .plugins/source
	touch $@

test-praat: .plugins/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=.plugins/site $(BIN)/python -m pytest -c pyproject.toml plugins/ser-praat/tests $(ARGS)

# The site is built from the code too; with -q, mkdocs would not count warnings as errors.
# Type checkers need the root under the package's name.
check: install
	mkdir -p .links && ln -sfn .. .links/ser
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -d .docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	printf '%s\n' linux darwin win32 | xargs -P 2 -I {} $(BIN)/mypy -p ser --platform {} --cache-dir .mypy_cache/{}

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ONLY)

clean:
	rm -rf .venv-lowest .venv-newest .plugins demo .docs .pytest_cache .mypy_cache .ruff_cache build *.egg-info
