PYTHON ?= python

.PHONY: test lint bench experiment

test:
	$(PYTHON) -m pytest -n 2

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# make experiment NAME=bidirectional [ON=ml-1m] [ARGS="--data_path=FOLDER --seeds=1 --dry_run"]: a sweep of
# benchmarks/experiments, on data and with the budget of benchmarks/experiments/on; sweeps on the same data share runs
ON ?= ml-100k
experiment:
	$(PYTHON) run_recbole_ssd.py \
		--config_files="benchmarks/experiments/on/$(ON).yaml benchmarks/experiments/$(NAME).yaml" \
		--output=benchmarks/results/experiments/$(ON)/$(NAME) --runs=benchmarks/results/experiments/$(ON)/runs $(ARGS)
	$(PYTHON) benchmarks/results_page.py

bench:
	$(PYTHON) benchmarks/training.py
