PYTHON ?= python

.PHONY: test lint bench experiment

test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# make experiment NAME=bidirectional [ARGS="--dataset=ml-100k --dry_run"]: a sweep of benchmarks/experiments
experiment:
	$(PYTHON) run_recbole_ssd.py --config_files=benchmarks/experiments/$(NAME).yaml \
		--output=benchmarks/results/experiments/$(NAME) $(ARGS)

bench:
	$(PYTHON) benchmarks/training.py
