"""Weight inheritance: students that begin with a teacher's weights beside one from scratch, on real product photos.

    make bench-inheritance DATA=FILE    benchmarks/results/inheritance.json; about 20 minutes on 2 idle cores

FILE is a Parquet file of product photos (title, article_type, split, jpeg); none comes with the project.

Read `__main__.py` first (what has to come out), then `material.py` (shards, teacher and cache out of the photos) and
`students.py` (what is trained, and how it is scored). Every piece is a folder that goes on where it stopped.
"""
