"""Two machines of one core beside one of two, on Ray: an ingest from a web server, and a cache."""
