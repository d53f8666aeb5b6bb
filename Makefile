# From a fresh clone with python3 (3.10 to 3.12) alone. The environment goes to .venv/, and nowhere else.
#   make demo    trains, evaluates and samples on the embedded data set
#   make test    runs all tests
# Another interpreter: make demo PYTHON=python3.11. More arguments: make test ARGS="-k fsq".

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.11 python3.12 python3.10)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))

.PHONY: help demo test lint install clean-demo clean

help:
	@echo "make demo        data, training, evaluation and clips of the embedded data set (about half an hour on 2 cores)"
	@echo "make test        all tests"
	@echo "make lint        ruff"
	@echo "make install     the environment in $(VENV)/, which the others make when it is missing"
	@echo "make clean-demo  removes what make demo wrote"
	@echo "make clean       removes $(VENV)/ and the caches"
	@echo "Options: PYTHON=python3.11 (3.10 to 3.12), ARGS=\"more arguments of the script or of pytest\""

demo: $(STAMP)
	$(BIN)/python -m scripts.demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .

install: $(STAMP)

# The stamp is written last, so an interrupted installation has none and starts again from nothing.
$(STAMP): requirements.txt
	@python=; for candidate in $(CANDIDATES); do \
	    if $$candidate -c "$(SUITABLE)" >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python 3.10 to 3.12 with venv among: $(CANDIDATES); install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	    exit 2; \
	fi; \
	if [ -f $@ ]; then rm $@; else $$python -m venv --clear $(VENV) || exit 1; fi; \
	echo "installing requirements.txt into $(VENV)/ (about 2 GB, a few minutes)"; \
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -r requirements.txt && touch $@

clean-demo:
	rm -rf datasets/demo checkpoints/demo generation/demo generation/demo_MARDM_demo

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
