# Needs only python3 (3.10 to 3.12). Everything is installed into .venv/ and nowhere else.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TOOLS := .make/tools
LOCKS := locks/build.txt locks/torch.txt locks/packages.txt
STAMP := $(VENV)/.installed
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.11 python3.12 python3.10)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))

# Where torch comes from: "locked" (PyPI's files, checked by hash), the URL of an index such as
# https://download.pytorch.org/whl/cpu, or "any" (as pip is configured). Empty: "any" where pip is configured with
# an index or folder of wheels of its own, else "locked".
TORCH :=

.PHONY: help demo test lint install lock update audit drift soak clean-demo clean

help:
	@echo "make demo        train, evaluate and sample on the embedded data set (about half an hour on 2 cores)"
	@echo "make test        run all tests"
	@echo "make lint        check the style with ruff"
	@echo "make install     create the environment in $(VENV)/ (the targets above do so if it is missing)"
	@echo "make lock        write locks/ anew for requirements.txt"
	@echo "make update      move requirements.txt and locks/ to the newest versions"
	@echo "make audit       ask PyPI for known vulnerabilities of what locks/ names"
	@echo "make drift       make the golden values of tiny trainings anew, and say what moved"
	@echo "make soak        damage 500 inputs and kill 80 trainings (an hour or two; goes on where it was stopped)"
	@echo "make clean-demo  remove what make demo wrote"
	@echo "make clean       remove $(VENV)/ and caches"
	@echo "Options: PYTHON=python3.11 (3.10 to 3.12), ARGS=\"more arguments\" (demo: --tiny; test: -k fsq),"
	@echo "TORCH=https://download.pytorch.org/whl/cpu (another build of torch: docs/install.md)"

demo: $(STAMP)
	$(BIN)/python -m scripts.demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .

install: $(STAMP)

lock: $(STAMP) $(TOOLS)/.installed
	$(BIN)/python -m scripts.lock --uv $(TOOLS)/bin/uv $(ARGS)

update: $(STAMP) $(TOOLS)/.installed
	$(BIN)/python -m scripts.lock --uv $(TOOLS)/bin/uv --upgrade $(ARGS)

# --strict: a package that could not be looked up is a failure too
audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --strict --disable-pip $(foreach file,$(LOCKS),--requirement $(file)) $(ARGS)

drift: $(STAMP)
	$(BIN)/python -m benchmarks.drift --write $(ARGS)

# the second soak runs whatever the first has found; fails if one of them does
soak: $(STAMP)
	@$(BIN)/python -m scripts.soak_inputs --inputs 500 --seed 3407 --results soak/inputs.json; inputs=$$?; \
	$(BIN)/python -m scripts.soak_kills --kills 20 --seed 3407 --results soak/kills.json && exit $$inputs

$(TOOLS)/.installed: locks/tools.txt | $(STAMP)
	$(BIN)/python -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --require-hashes -r $<
	touch $@

# The stamp is written last: without it, an interrupted installation starts again from scratch.
$(STAMP): requirements.txt $(LOCKS)
	@python=; for candidate in $(CANDIDATES); do \
	    if $$candidate -c "$(SUITABLE)" >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python 3.10 to 3.12 with venv among: $(CANDIDATES); install one, or pass its path:" \
	        "make PYTHON=/path/to/python3.11" >&2; \
	    exit 2; \
	fi; \
	if [ -f $@ ]; then rm $@; else $$python -m venv --clear $(VENV) || exit 1; fi; \
	echo "installing requirements.txt into $(VENV)/ (2 GB, with CUDA 6 GB; a few minutes)"; \
	torch=$(TORCH); own=$$($(PIP) config list | grep -E "(index-url|find-links)="); \
	if [ -z "$$torch" ]; then if [ -n "$$own" ]; then torch=any; else torch=locked; fi; fi; \
	pinned=$$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements.txt); \
	$(PIP) install --require-hashes --no-deps -r locks/build.txt && \
	case "$$torch" in \
	    locked) $(PIP) install --require-hashes --no-deps -r locks/torch.txt ;; \
	    any) $(PIP) install "$$pinned" ;; \
	    *) $(PIP) install --index-url "$$torch" "$$pinned" ;; \
	esac && \
	$(PIP) install --require-hashes --no-deps --no-build-isolation -r locks/packages.txt && \
	$(PIP) check && touch $@

clean-demo:
	rm -rf datasets/demo checkpoints/demo generation/demo generation/demo_MARDM_demo

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
