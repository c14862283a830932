# Two targets need nothing but python3 (3.11 or newer) and make:
#
#   make demo    virtual environment, installation, the main path on workloads/quickstart.yaml, its report
#   make test    virtual environment with everything the tests need, linters, types, the whole suite
#
# TORCH says which torch the tests install; give an exact build where the newest is not wanted.

PYTHON  ?= python3
VENV    ?= .venv
TORCH   ?= torch>=2.6
OUT     ?= demo
WORKERS ?= auto

bin := $(VENV)/bin
sources := muplan tests validation benchmarks docs

.PHONY: demo test lint types suite alone ray docs clean

demo: $(VENV)/.installed
	$(bin)/muplan profile bert-1.3b --device v100-sxm2-32gb -o $(OUT)/bert-1.3b.json --plot $(OUT)/bert-1.3b.png
	$(bin)/muplan solve workloads/quickstart.yaml -o $(OUT)/quickstart.plan.json
	$(bin)/muplan verify $(OUT)/quickstart.plan.json
	$(bin)/muplan execute $(OUT)/quickstart.plan.json -o $(OUT)/quickstart.run.json --plot $(OUT)/quickstart.png
	@echo "Written: $(OUT)/bert-1.3b.json $(OUT)/bert-1.3b.png $(OUT)/quickstart.plan.json" \
	      "$(OUT)/quickstart.run.json $(OUT)/quickstart.png"

# Types are checked beside the suite, which leaves a core idle now and then.
test: lint
	@$(MAKE) --no-print-directory --jobs=2 types suite

lint: $(VENV)/.tested
	$(bin)/ruff format --check $(sources)
	$(bin)/ruff check $(sources)

types: $(VENV)/.tested
	$(bin)/mypy

suite: $(VENV)/.tested
	$(bin)/pytest -n $(WORKERS)

# Plans executed for real against what was predicted: two minutes of a machine that does nothing else.
alone: $(VENV)/.tested
	$(bin)/pytest -m alone -s

# Actors of Ray on a cluster of several nodes that are all this machine: three minutes more, and 70 MB.
ray: $(VENV)/.tested
	$(bin)/python -m pip install --quiet --disable-pip-version-check --editable ".[ray]"
	$(bin)/pytest tests/test_ray_backend.py
	$(bin)/pytest -m alone -s -k ray

docs: $(VENV)/.tested
	$(bin)/python -m docs.generate

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "muplan needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(bin)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(bin)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(bin)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,torch,http]"
	@touch $@

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .ruff_cache .pytest_cache .hypothesis
