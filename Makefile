# make demo, make test, make lint: each installs what it needs into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
TORCHREC := 1.8.0
RECBOLE := 1.2.1
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/learn-rank demo run_dir=runs/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# On a host with an NVIDIA GPU the CUDA builds; elsewhere the CPU builds, which pip has to be pointed at: an index or a
# wheel folder that pip already knows, else PyTorch's own. torchrec's metadata asks for the CUDA build of fbgemm, hence
# --no-deps; fbgemm-gpu-cpu holds the same module.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  set -x; $(BIN)/pip install -e '.[gpu]'; \
	else \
	  set -x; \
	  { $(BIN)/pip install --quiet 'torch==$(TORCH)+cpu' 2>/dev/null \
	    || $(BIN)/pip install --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)+cpu'; } \
	  && $(BIN)/pip install -e '.[cpu]' \
	  && $(BIN)/pip install --no-deps 'torchrec==$(TORCHREC)'; \
	fi
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -e '.[dev]'
	$(BIN)/pip install --no-deps 'recbole==$(RECBOLE)'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
