# Needs only python3 (3.10 to 3.12). Everything is installed into .venv/ and nowhere else.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.11 python3.12 python3.10)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))

.PHONY: help demo test lint install clean-demo clean

help:
	@echo "make demo        train, evaluate and sample on the embedded data set (about half an hour on 2 cores)"
	@echo "make test        run all tests"
	@echo "make lint        check the style with ruff"
	@echo "make install     create the environment in $(VENV)/ (the targets above do so if it is missing)"
	@echo "make clean-demo  remove what make demo wrote"
	@echo "make clean       remove $(VENV)/ and caches"
	@echo "Options: PYTHON=python3.11 (3.10 to 3.12), ARGS=\"more arguments\" (demo: --tiny; test: -k fsq)"

demo: $(STAMP)
	$(BIN)/python -m scripts.demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .

install: $(STAMP)

# The stamp is written last: without it, an interrupted installation starts again from scratch.
$(STAMP): requirements.txt
	@python=; for candidate in $(CANDIDATES); do \
	    if $$candidate -c "$(SUITABLE)" >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python 3.10 to 3.12 with venv among: $(CANDIDATES); install one, or pass its path:" \
	        "make PYTHON=/path/to/python3.11" >&2; \
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
