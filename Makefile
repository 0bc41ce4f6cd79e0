# The few commands a newcomer needs: make setup, make demo, make test, make docs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: setup demo test test-all test-slurm coverage package imports docs lint lock clean

setup: $(READY)

$(READY): requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"voxout needs Python 3.11 to 3.13, and $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: setup
	$(BIN)/voxout demo demo

# Two processes; the tests of a file share their fixtures.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m "slow or not slow"

# Jobs of a real SLURM on this machine, which the tests start; skipped without root, slurmctld, slurmd, slurm-client, munge.
test-slurm: setup
	$(BIN)/pytest -n 0 -rs -m "slow or not slow" tests/pipeline/cluster/test_slurm.py

# Of the fast tests, the 20 least covered modules and the total. Lines run only in other processes are not counted.
coverage: setup
	$(PYTEST) --cov --cov-report= $(TESTS)
	@$(BIN)/python -m coverage report | sed -n '1,22p'
	@echo "total: $$($(BIN)/python -m coverage report --format=total) %"

# The package as it is installed, in one folder: what reads the sources without running them needs that.
package: setup
	rm -rf build/lib build/package
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/package .

imports: package
	cd build/package && $(CURDIR)/$(BIN)/lint-imports --no-logo --config $(CURDIR)/setup.cfg

docs: package
	$(BIN)/python -m voxout.pipeline.config.settings_page docs/settings.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(MAKE) --no-print-directory imports

lock: setup
	@echo "# Everything voxout runs and is tested with, for Python 3.11 to 3.13. Made by: make lock" > requirements.lock
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -v -E '^(pip|wheel)==' | sed 's/+cpu//' >> requirements.lock

clean:
	rm -rf $(VENV) demo build dist *.egg-info
