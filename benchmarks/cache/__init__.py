"""The teacher cache: building beside bare forwards, bytes, reading beside DataCompDR's files, memory, rendering.

    make bench-cache        benchmarks/results/cache.json; about 10 minutes on 2 cores, which must be idle

Read `__main__.py` first (what is measured and what has to come out), then one file for each part: `build.py` (`gpu.py`
where there is one), `size.py`, `read.py`, `memory.py`, `rendering.py`. What they are measured on is made by
`material.py`, from fixed seeds, in `.bench/`.
"""
