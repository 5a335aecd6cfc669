# Each target makes its own virtual environment first; nothing else has to be installed by hand.
#   make quickstart   train and score a tiny PaliGemma on real images (CPU or GPU)
#   make test         the fast tests;  make test-slow, test-long: the rest;  make lint: ruff
#   make docs         rewrite the generated tables of README.md and docs/
# PYTHON=python3.12 picks another interpreter; each interpreter has an environment of its own.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Without PYTHON: python3.11, else python3.12, else the plain python3 if it is one of the two.
PROBE = -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'
ifeq ($(origin PYTHON), undefined)
  PYTHON := $(shell for p in python3.11 python3.12 python3; do \
    $$p $(PROBE) >/dev/null 2>&1 && echo $$p && break; done)
  VENV := .venv
else
  VENV := .venv-$(notdir $(PYTHON))
endif
PY := $(VENV)/bin/python
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
CORE := -r requirements.txt $(if $(GPU),-r requirements-cuda.txt)

CONFIG ?= configs/easyvqa.py
WORKDIR ?= workdir/easyvqa
# Two workers suit two cores; WORKERS=0 turns them off, PYTEST_ARGS="-k decode" adds options.
WORKERS ?= 2
PYTEST = $(PY) -m pytest -n $(WORKERS) --dist=loadgroup -q

.PHONY: help install install-test quickstart test test-slow test-long test-demo test-cluster test-gpu test-parity test-tf \
  test-buckets lint format docs clean
help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(PY):
	@if [ -z "$(PYTHON)" ]; then \
	  echo "pgjax needs Python 3.11 or 3.12 with venv, and neither python3.11, python3.12 nor python3 is" \
	    "one. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi
	@$(PYTHON) $(PROBE) 2>/dev/null || { \
	  echo "PYTHON=$(PYTHON) does not run, has no venv module, or is not Python 3.11 or 3.12." >&2; exit 1; }
	@[ -z "$(findstring 3.11,$(PYTHON))$(findstring 3.12,$(PYTHON))" ] && echo "Using $$($(PYTHON) --version)." || true
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt requirements-cuda.txt | $(PY)
	@$(if $(GPU),echo "NVIDIA GPU found: installing JAX with CUDA.",echo "No NVIDIA GPU: installing JAX for the CPU.")
	$(PY) -m pip install --quiet --disable-pip-version-check $(CORE)
	@$(PY) -m compileall -q pgjax configs  # Where PYTHONDONTWRITEBYTECODE is set, a start takes 0.4 s more.
	@touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check $(CORE) -r requirements-test.txt
	@touch $@

# torch first: it is the CPU's where pip finds that one, and transformers leaves it as it is.
$(VENV)/.installed-parity: requirements-parity.txt $(VENV)/.installed-test
	$(PY) -m pip install --quiet --disable-pip-version-check $$(grep ^torch== $<)
	$(PY) -m pip install --quiet --disable-pip-version-check $(CORE) -r requirements-test.txt -r $<
	@touch $@

$(VENV)/.installed-demo: requirements-demo.txt $(VENV)/.installed-test
	$(PY) -m pip install --quiet --disable-pip-version-check $(CORE) -r requirements-test.txt -r $<
	@touch $@

quickstart: $(VENV)/.installed
	$(PY) -m pgjax.train --config=$(CONFIG) --workdir=$(WORKDIR)
	$(PY) -m pgjax.evaluate --ckpt=$(WORKDIR) --evals=test --out=$(WORKDIR)/test
	@echo; echo "Some questions with their answers:"
	@$(PY) -c 'import itertools, json, sys; [print("  {prompt:42} {prediction:10} (right: {answer})".format(**json.loads(r))) \
	  for r in itertools.islice(sys.stdin, 0, 1500, 250)]' < $(WORKDIR)/test/predictions.jsonl
	@echo "Config, checkpoints, metrics.jsonl and TensorBoard files are in $(WORKDIR)"

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not long and not cluster and not gpu and not parity and not tf" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m "slow and not long and not gpu and not parity and not tf" $(PYTEST_ARGS)

test-long: $(VENV)/.installed-test
	$(PYTEST) --timeout=0 -m "long and not gpu and not parity and not tf" $(PYTEST_ARGS)

# Gradio takes half a minute to install and to import: too much for every change.
test-demo: $(VENV)/.installed-demo
	$(PYTEST) tests/web tests/commands/test_demo.py tests/commands/test_demo_http.py $(PYTEST_ARGS)

# Needs root and Debian's slurm-wlm, munge, openmpi-bin and iproute2; tests skip what is not there.
test-cluster: $(VENV)/.installed-test
	$(PY) -m pytest -q -n 0 -rs -m cluster tests/cluster tests/launch $(PYTEST_ARGS)

# The numbers of the reference on the machine's own devices. Float32 products of GPUs are in TF32 otherwise.
test-gpu: $(VENV)/.installed-test
	PGJAX_TEST_REAL_DEVICES=1 JAX_DEFAULT_MATMUL_PRECISION=highest $(PY) -m pytest -q tests/test_golden.py $(PYTEST_ARGS)

# TRANSFORMERS=4.57.6 compares with that version instead, and leaves it installed.
test-parity: $(VENV)/.installed-parity
	$(if $(TRANSFORMERS),$(PY) -m pip install --quiet --disable-pip-version-check transformers==$(TRANSFORMERS))
	$(PYTEST) -m parity $(PYTEST_ARGS)

# TensorFlow in an environment of its own, on top of the other one's packages: with it, tensorflow-datasets works
# in another way. PGJAX_BIG_VISION=FOLDER compares with the ops of that checkout of big_vision, on its pp strings.
$(VENV)-tf/.installed: requirements-tf.txt $(VENV)/.installed-test
	$(PY) -m venv $(VENV)-tf
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(VENV)-tf/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pgjax.pth"
	$(VENV)-tf/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

test-tf: $(VENV)-tf/.installed
	$(VENV)-tf/bin/python -m pytest -n $(WORKERS) --dist=worksteal -q -m tf tests/tf $(PYTEST_ARGS)

# An S3 and a GCS server, which take half a minute of CPU to install: too much for every change.
$(VENV)-buckets/.installed: requirements-cloud.txt requirements-buckets.txt $(VENV)/.installed-test
	$(PY) -m venv $(VENV)-buckets
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(VENV)-buckets/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pgjax.pth"
	$(VENV)-buckets/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-cloud.txt \
	  -r requirements-buckets.txt
	@touch $@

test-buckets: $(VENV)-buckets/.installed
	$(VENV)-buckets/bin/python -m pytest -q -n 0 -rs tests/commands/test_buckets.py $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(VENV)/.installed
	$(PY) docs/generate.py

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache
