"""What runs a step, and a run of steps. Read `train.py` first (the loop), then `run.py` (what it holds), `step.py`."""
