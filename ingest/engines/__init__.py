"""What turns URLs into stored images or causes: our engine, and img2dataset's made strict.

Read `engine.py` first: what both do. Neither is imported before a worker needs it.
"""
