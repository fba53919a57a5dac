"""Which teacher, at which logit scale, makes the better students: small ones, on a part of a dataset.

A dataset and teachers come in, or a cache of theirs; a page with the winner goes out. Published: the stronger teacher
is often the worse one, and the scale that a model carries is not the best to learn from (MobileCLIP2). Read
`settings.py`, then `run.py`; `verdict.py` says what figures of several seeds tell, `page.py` shows it.
"""
