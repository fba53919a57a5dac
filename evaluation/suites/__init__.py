"""Suites: the tables that papers print, with our rows in them.

`tasks.py` knows DataComp's 38 tasks and the main metric of each; `metrics.py` gives a set's result published names;
`files.py` reads and writes the files that people publish; `published.py` has what was printed; `suites.py` says which
columns a table has; `table.py` puts rows together, and `page.py` draws them. Nothing here imports torch.
"""
