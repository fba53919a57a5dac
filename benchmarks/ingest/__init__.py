"""Ingest against img2dataset and Daft: a list of URLs on this machine's own server, to shards.

    make bench-ingest        benchmarks/results/ingest.json and ingest.html; 32 minutes on 2 cores, which must be idle

Read `classes.py` first (what is compared), then `contenders.py` (how each is run, and what is counted), `server.py`,
`images.py` and `crawl.py` (what they download), `own_network.py` (where hosts can be dead). Environments of peers,
images and scratch lie in `.bench/`. `--quick` runs every class small, `--only CLASS` one.
"""
