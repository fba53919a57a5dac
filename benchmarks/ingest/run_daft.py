"""Daft's way from URLs to small JPEGs, in its own environment: LIST.parquet in, OUT/*.parquet and OUT/window.json out.

python run_daft.py LIST OUT WIDTH HEIGHT CONNECTIONS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import daft
from daft.functions import decode_image, download, encode_image, resize

if __name__ == "__main__":
    urls, out = sys.argv[1], Path(sys.argv[2])
    width, height, connections = map(int, sys.argv[3:])
    daft.set_runner_native()
    start = time.time()
    rows = daft.read_parquet(urls)
    body = download(rows["url"], max_connections=connections, on_error="null")
    image = resize(decode_image(body, mode="RGB", on_error="null"), width, height)
    rows.with_column("image", encode_image(image, "JPEG")).write_parquet(str(out))
    end = time.time()
    images = [image for image in daft.read_parquet(f"{out}/*.parquet").to_pydict()["image"] if image is not None]
    window = {"start": start, "end": end, "images": len(images), "stored": sum(map(len, images))}
    (out / "window.json").write_text(json.dumps(window))
