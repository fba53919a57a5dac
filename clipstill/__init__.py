"""The command line of Clipstill: parses, calls the stages, reports, sets the exit status. No logic lives here.

Read `main.py` first; each file in `commands/` is one command. `demo/` is the whole path on data it makes itself.
"""
