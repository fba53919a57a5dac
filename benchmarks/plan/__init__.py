"""Planning a list of 20 million rows with two conditions: time to the first shard, CPU, memory, disk; killed at half.

    make bench-plan       benchmarks/results/plan.json; 5 to 15 minutes and 4 GB of scratch (--scratch)

Nothing is fetched: of each shard that is handed out a record's name is laid down, as if it had been made, so parts go
as they do in a run. Read `__main__.py` first; `run.py` is the program that is measured.
"""
