"""Shards and a cache in, a trained student out; no run loads a teacher (`training/live.py` is for comparing with one).

Comes in: a dataset as `shards` defines it, a teacher cache beside it (or none, for plain CLIP training), a student.
Goes out: a run folder with checkpoints, logs and the student as an open_clip model.

    data/ (which samples, when) → training/ (the loop) ← losses/ (what is minimised), pruning/
    run folder → report/ (pages), export/ (other formats)

Importing this package never imports ray.
"""
