"""Opening a dataset of 100,000 shards, of ours and of adopted tars: seconds, CPU, memory.

    make bench-manifest       benchmarks/results/manifest.json; under 3 minutes

Nothing but records is there, for nothing else is looked at. Read `__main__.py` first; `run.py` is what is measured.
"""
