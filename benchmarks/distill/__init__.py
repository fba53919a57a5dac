"""The trainer: a step from the cache beside plain CLIP training and live teachers, and the loss curves of both.

    make bench-distill      benchmarks/results/distill.json; a quarter of an hour on 2 idle cores, or on a GPU

Read `__main__.py` first (what is measured and what has to come out), then `contenders.py` (the kinds of step that are
compared), and one file for each part: `speed.py` with `memory.py`, `shares.py`, `curves.py`. What they are measured on
is made by `material.py`, from fixed seeds, in `.bench/`.
"""
