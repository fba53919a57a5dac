"""The joined loader beside what else feeds CLIP: open_clip's own pipeline, torchvision, SPDL, DALI on the CPU.

    make bench-loader       benchmarks/results/loader.json; about 7 minutes on 2 cores, which must be idle

Read `__main__.py` first (what is measured and what has to come out), then `run_*.py`: each contender is a program of
its own, run in an environment of its own (`environments.py`) on a given number of cores. They read the same tars, made
by `material.py` from fixed seeds in `.bench/`.
"""
