"""What feeds a step: which samples, in which order, as pixels, tokens and the teachers' embeddings.

Read `order.py` first, then `loader.py` and `collate.py`.
"""
