# make demo   set up, run the main job on the embedded model, write the leaderboard
# make test   set up, run the tests that this machine can run
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test setup model texts vllm-cpu lint lock clean

demo: setup
	$(BIN)/python -m bfpo_bench run --model smollm2-135m --suite mini
	$(BIN)/python -m bfpo_bench leaderboard runs --out site

# Two at a time, and those of vLLM one after another (tests/conftest.py), beside all others.
test: setup texts
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

setup: $(VENV)/.installed model

# The embedded model is part of the set-up: neither demo nor tests need a network after it.
model: $(VENV)/.installed
	@$(BIN)/python -c "from bfpo_bench.sources import materialise; materialise('smollm2-135m', say=print)"

# Published texts of judges, as far as they can be had from here; the tests of the others say what they lack.
texts: $(VENV)/.installed
	@$(BIN)/python -m bfpo_bench data fetch --judges all || echo "not all texts of judges are here: their tests are skipped"

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" || \
	  { echo "Python 3.11 to 3.13 is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 2; }

# Real vLLM on a machine without a GPU, for the tests marked vllm.
vllm-cpu: $(VENV)/.vllm-cpu

$(VENV)/.vllm-cpu: .ci/vllm_cpu.py constraints.txt | $(VENV)/.installed
	$(BIN)/python .ci/vllm_cpu.py
	@touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# triton is left out: each build of torch asks for its own.
lock: vllm-cpu
	@echo "# Every version that the set-up installs, direct and indirect (Python 3.11 to 3.13). Renew it with: make lock" > constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude wheel --exclude vllm --exclude triton \
	  | grep == | sed 's/+cpu//' >> constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info
