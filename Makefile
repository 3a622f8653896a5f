# `make demo` and `make test` install their requirements; you can run them again, in any order.

PYTHON ?= $(shell command -v python3 || command -v python3.11 || echo python3)
ifeq ($(OS),Windows_NT)
VENV_BIN = .venv/Scripts
else
VENV_BIN = .venv/bin
endif
VENV_PYTHON = $(VENV_BIN)/python
# Versions to test with: `make test TORCH="torch==2.11.* torchvision==0.26.*"`, after `make clean`.
TORCH ?=
# Processes that share the tests; each keeps to one thread.
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-all test-gpu test-litert fuzz table docs upstream bench bench-gpu bench-int8 bench-deploy bench-accuracy zoo lint dist dist-check test-dist release-check versions clean

# Without the weights and photographs, the demo leaves out its third part.
demo: .venv/demo.stamp
	@$(MAKE) --no-print-directory .venv/photographs.stamp || true
	$(VENV_PYTHON) references/classification/demo.py --output-dir outputs

test: .venv/test.stamp
	$(VENV_PYTHON) -m pytest -n $(JOBS)

test-all: .venv/test.stamp
	$(VENV_PYTHON) -m pytest -n $(JOBS) -m "slow or not slow"

# Tests LiteRT, which needs an environment of its own.
test-litert: .venv-litert/test.stamp
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(LITERT_PYTHON) -m pytest test/deploy/test_litert.py

# Runs layers, folding, exported files and training on a GPU, with .venv if there is one, and installs nothing. Without a GPU it says so
# and ends. Another Python, and options for pytest: `make test-gpu GPU_PYTHON=python3 GPU="-k fold"`.
GPU_PYTHON ?= $(firstword $(wildcard $(VENV_PYTHON)) $(PYTHON))
test-gpu:
	@$(GPU_PYTHON) -m test.gpu $(GPU)

# Draws models and checks all that the package does with them; sources that fail are in outputs/fuzz. `make fuzz MODELS=5000 SEED=1`
# takes hours: Ctrl-C ends it with a summary, and SKIP=1200 continues after 1,200 models. To run a model again:
# `.venv/bin/python -m test.models outputs/fuzz/FILE.py`.
MODELS ?= 500
SEED ?= 0
SKIP ?= 0
fuzz: .venv/test.stamp
	$(VENV_PYTHON) -m test.models --models $(MODELS) --seed $(SEED) --skip $(SKIP)

# Runs all conformance checks and writes their page of the docs; `make test` fails if it is out of date.
table: .venv/test.stamp
	$(VENV_PYTHON) -m pytest test/conformance/test_matrix.py -k test_case -m "slow or not slow" --write-matrix

# Builds the pages in docs/build/html; a warning is an error.
docs: .venv/docs.stamp
	$(VENV_PYTHON) -m sphinx -W --keep-going -n -q -E -b html docs/source docs/build/html

# Adds a stable layer to a checkout of torchvision: `make upstream LAYER=MBConv CHECKOUT=DIR`.
upstream: .venv/test.stamp
	@$(VENV_PYTHON) -m tools.upstream "$(LAYER)" "$(CHECKOUT)"

# Times the layers relative to their peers. More rounds: `BENCH="--rounds 30"`; folded blocks: `BENCH=--folded`.
bench: .venv/bench.stamp
	$(VENV_PYTHON) benchmarks/layers.py $(BENCH)

# Times the layers on a GPU, with the Python of test-gpu, and installs nothing.
bench-gpu:
	$(GPU_PYTHON) benchmarks/layers.py --device cuda $(BENCH)

# Times int8 models relative to torchvision's.
bench-int8: .venv/bench.stamp
	$(VENV_PYTHON) benchmarks/quantized.py $(BENCH)

# Measures time and memory of whole models in each runtime, which takes hours. One model: `BENCH="--only resnet18"`.
bench-deploy: .venv/bench.stamp
	$(VENV_PYTHON) benchmarks/deploy.py $(BENCH)

# Measures the error of int8 models with trained weights, by this package and other tools; an interrupted run continues. NNCF has an
# environment of its own. Without it, its rows are left out. Other models: `BENCH="--only efficientnet_lite1 efficientnet_lite2"`.
bench-accuracy: .venv/accuracy.stamp
	@$(MAKE) --no-print-directory .venv-nncf/accuracy.stamp || echo "NNCF is left out: .venv-nncf cannot be made"
	$(VENV_PYTHON) benchmarks/accuracy.py $(BENCH)

# Quantizes, folds and exports models of torchvision and timm, and writes their page of the docs; an interrupted run continues.
# One model: `ZOO="--only resnet18 --again"`.
zoo: .venv/bench.stamp
	$(VENV_PYTHON) -m benchmarks.zoo $(ZOO)

lint: .venv/lint.stamp
	PATH="$(CURDIR)/$(VENV_BIN):$$PATH" $(VENV_PYTHON) -m pre_commit run --all-files

# `make dist` builds the wheel and the source distribution; `make test-dist KIND=whl` (or tar.gz) installs and tests one.
KIND ?= whl
dist: .venv/dist.stamp
	rm -rf dist
	$(VENV_PYTHON) -m build

test-dist:
	.ci/installed "$(PYTHON)" dist/*.$(KIND)

# Inspects both: metadata, content and size.
dist-check: dist
	$(VENV_PYTHON) -m twine check --strict dist/*
	$(VENV_PYTHON) -m tools.release_check dist

# Runs all steps of a release except publishing. `SUITE=no` leaves out the suite, which otherwise runs for each distribution.
SUITE ?= yes
export SUITE
release-check: dist-check
	$(MAKE) test-dist KIND=whl
	$(MAKE) test-dist KIND=tar.gz

# Tries the first steps with pairs of Python and torch, and every extra, and writes docs/source/versions.json; takes an hour.
PYTHONS ?= $(PYTHON)
TORCHES ?= 2.11 2.12 2.14 2.15
versions: dist
	$(VENV_PYTHON) -m tools.versions --wheel dist/*.whl --python $(PYTHONS) --torch $(TORCHES) --extras

NNCF_PYTHON = $(patsubst .venv/%,.venv-nncf/%,$(VENV_PYTHON))
.venv-nncf/accuracy.stamp: setup.py version.txt
	$(PYTHON) -m venv --clear .venv-nncf
	$(NNCF_PYTHON) -m pip install --quiet --editable ".[accuracy,nncf]" $(TORCH)
	touch $@

LITERT_PYTHON = $(patsubst .venv/%,.venv-litert/%,$(VENV_PYTHON))
.venv-litert/test.stamp: setup.py version.txt
	$(PYTHON) -m venv --clear .venv-litert
	$(LITERT_PYTHON) -m pip install --quiet --editable ".[litert,pt2e,pytest]" $(TORCH)
	touch $@

# A stamp is written only after its installation has succeeded, so an interrupted one starts again.
.venv/%.stamp: setup.py version.txt pyproject.toml
	$(VENV_PYTHON) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(VENV_PYTHON) -m pip install --quiet --editable ".[$*]" $(TORCH)
	touch $@

clean:
	rm -rf .venv .venv-litert .venv-nncf build dist docs/build docs/source/generated *.egg-info
