# Everything installs into .venv on first use, with uv where it is found, with venv and pip otherwise.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m quickdrop_bench
TEST = $(BIN)/python -m pytest -q -n $(CORES) --maxprocesses 4 --dist loadfile
DATA = $(if $(DATASET),--dataset $(DATASET)) $(if $(DATA_DIR),--data-dir $(DATA_DIR))
OPTIONS = $(if $(PRESET),--preset $(PRESET)) $(DATA) $(SPREAD) $(ARGS)

# The small models of quick gain little from threads: without a GPU, two cores get a process each.
CORES := $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1)
GPU := $(shell command -v nvidia-smi 2>/dev/null)
PINNED = $(GPU)$(filter-out quick,$(PRESET))$(filter 1,$(CORES))$(findstring --jobs,$(ARGS))$(findstring --preset,$(ARGS))$(findstring --config,$(ARGS))
SPREAD = $(if $(PINNED),,--devices 2)

.DEFAULT_GOAL := help
.PHONY: help install run sweep paper results shadows leaderboard report speed
.PHONY: test test-slow test-long check format clean

help: ## show this help
	@echo "make TARGET [PRESET=quick|small|paper] [DATASET=name] [DATA_DIR=folder] [ARGS='more options']"
	@echo
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9%-]+):.*## (.*)/  \1|\2/' | column -t -s '|'

$(VENV)/.installed: pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

install: $(VENV)/.installed ## install the package and its tools into .venv

table%: install ## a table of the paper, as table2: benchmarks/tables/2.yaml says what it shows
	@$(RUN) table $* $(OPTIONS)

figure%: install ## a figure of the paper, as figure4: benchmarks/figures/4.yaml
	@$(RUN) figure $* $(OPTIONS)

sweep: install ## over scales, alphas, clients, data sets: ARGS='--scales 1,10,100,1000'
	@$(RUN) sweep $(OPTIONS)

# Each command goes on where it was interrupted, so that the same line can be typed again.
paper: install ## Tables 2 to 6 and Figures 2 to 6 at the paper's setting, on a GPU, estimates first; goes on where it was interrupted
	@for plan in --dry-run ''; do \
		for exhibit in 'table 2' 'table 6' 'table 4' 'table 5' 'table 3' 'figure 2' 'figure 3' 'figure 4' 'figure 5' 'figure 6'; do \
			echo "$$exhibit" >&2; $(RUN) $$exhibit --preset paper $(DATA) $(ARGS) $$plan || exit $$?; done; done

results: install ## tables and figures of PRESET=small on MNIST (DATA_DIR=) and an image folder (IMAGES=), rows kept in results/reference/
	@$(BIN)/python benchmarks/results.py $(if $(PRESET),--preset $(PRESET)) --data-dir $(or $(DATA_DIR),data) $(if $(IMAGES),--images $(IMAGES)) $(ARGS)

leaderboard: install ## results/leaderboard.md from committed rows; METHOD=name first measures what that method lacks, in results/methods/
	@[ -z "$(METHOD)" ] || $(RUN) figure 7 --preset $(or $(PRESET),quick) --methods "retrain-or,$(METHOD)" --results-dir "results/methods/$(METHOD)" $(DATA) $(SPREAD) $(ARGS)
	@$(BIN)/python benchmarks/leaderboard.py

shadows: install ## U-LiRA and KLOM from 64 federations on digits, kept in results/reference/quick/shadows; goes on where it was interrupted
	@$(BIN)/python benchmarks/shadows.py --jobs $(CORES) $(ARGS)

run: install ## any command: ARGS='unlearn latest --class 9'
	@$(RUN) $(ARGS)

report: install ## one HTML page over all rows
	@$(RUN) report $(ARGS)

speed: install ## how fast the engine is; takes half an hour on two idle cores
	@$(BIN)/python benchmarks/performance/speed.py $(ARGS)

test: install ## run the tests that take seconds
	@$(TEST) $(ARGS)

test-slow: install ## run the slow tests
	@$(TEST) -m 'slow and not long' $(ARGS)

test-long: install ## run random kills and generated input, which CI does not
	@$(TEST) -m long $(ARGS)

check: install ## check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: install ## format the code and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove .venv and caches
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
