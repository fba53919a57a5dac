"""Methods that a cache makes cheap, beside the plain recipe at equal time: LiT, CLIPA, ACED, an auditioned scale.

    python -m benchmarks.methods FILE    benchmarks/results/methods.json; a quarter of an hour on 2 idle cores

FILE is a Parquet file of product photos (title, article_type, split, jpeg); none comes with the project. `__main__.py`
says what is measured, `students.py` what is trained and how it is scored; every piece goes on where it stopped.
"""
