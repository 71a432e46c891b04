"""Several models side by side in one command. Start with `command.py`: plan, search, run, report.

options.py    the keys of a comparison, and the settings of each model
runs.py       what is to run: a run and its identity
runner.py     each run in a process of its own
records.py    what the runs left behind
statistics.py metrics from ranks, bootstrap, Holm
report.py     tables, pictures, files
search.py     settings tuned before they are compared
"""
