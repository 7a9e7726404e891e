# make demo: the whole chain on the photographs in examples/.   make test: the tests.   Each sets itself up.
# A machine without a GPU: make demo TORCH_INDEX=<address of PyTorch's CPU wheels> (README, "Installation").
VENV ?= .venv
PYTHON ?= python3
DEMO ?= demo-output
RUN = $(VENV)/bin/python
export TORCH_INDEX PYTHON
export RAY_USAGE_STATS_ENABLED = 0
export HF_HUB_OFFLINE ?= 1
export MLFLOW_DISABLE_TELEMETRY = true
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-fast chaos lint bench mlflow lock clean
demo: $(VENV)/.complete
	$(RUN) infra/jobs/demo.py --workspace $(DEMO)

test: $(VENV)/.complete
	$(RUN) -m pytest -n 2 -m "not integration and not chaos and not gpu"
	$(RUN) -m pytest -n 2 --dist loadfile -m "integration and not chaos and not gpu"

test-fast: $(VENV)/.complete
	$(RUN) -m pytest -n 2 -m "not integration and not chaos and not gpu"

chaos: $(VENV)/.complete
	$(RUN) -m pytest -m chaos --timeout 1800

lint: $(VENV)/.complete
	$(RUN) -m ruff check .
	$(RUN) -m mypy

bench: $(VENV)/.complete
	for file in benchmarks/*.py; do $(RUN) $$file || exit 1; done

mlflow: $(VENV)/.complete
	$(RUN) -m mlflow ui --backend-store-uri sqlite:///$(DEMO)/mlflow.db --host 127.0.0.1 --port 5000 --workers 1

# Resolve pyproject.toml anew. Names and versions only: no address of an index belongs into the lock.
lock:
	$(PYTHON) -m venv .lock && .lock/bin/pip install --quiet --upgrade pip
	.lock/bin/pip install --quiet --dry-run --ignore-installed --report .lock/report.json $$($(PYTHON) infra/images/requirements.py)
	$(PYTHON) infra/images/requirements.py .lock/report.json > requirements.txt && rm -rf .lock

$(VENV)/.complete: requirements.txt infra/images/install.sh
	@echo "building $(VENV): about 25 seconds with uv, 2 to 3 minutes with pip"
	infra/images/install.sh $(VENV)

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
