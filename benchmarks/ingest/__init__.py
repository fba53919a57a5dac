"""Ingest against img2dataset and Daft: a list of URLs on this machine's own server, to shards.

    make bench-ingest        benchmarks/results/ingest.json and ingest.html; 15 minutes on 2 cores, which must be idle

Read `__main__.py` first (what is compared), then `contenders.py` (how each is run, and what is counted), `server.py`
and `images.py` (what they download). Environments of peers, images and scratch lie in `.bench/`.
"""
