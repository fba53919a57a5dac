"""Near duplicates among a million hashes: time, memory, and every planted pair; and what small changes do to a hash.

    make bench-near         benchmarks/results/near.json; under 3 minutes on 2 cores, which must be idle

Read `__main__.py` first (what is measured and what has to come out); `search.py` is the program that is measured.
"""
