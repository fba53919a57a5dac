"""Measured comparisons, one command each: `make bench-NAME` writes `results/NAME.json` and a page beside it.

Every figure in a document comes from such a file. Contenders run side by side in one run, taking turns, and a goal
that is missed makes the command fail. Read `record.py` first (what a result holds), then `page.py` (how its page is
made) and `measure.py` (how the time, CPU and memory of a command with all its processes are taken). Linux only: it
reads `/proc`.
"""
