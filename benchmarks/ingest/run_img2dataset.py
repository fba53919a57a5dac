"""img2dataset's public `download`, called with JSON of its arguments.

    python run_img2dataset.py JSON [--shared-tls]

`--shared-tls` mends its greatest cost over https, for comparison: one TLS context for a process instead of one for
every request, which reads all authorities again.
"""

from __future__ import annotations

import json
import ssl
import sys
import urllib.request

if "--shared-tls" in sys.argv:
    # At the top, because its worker processes import this module and do not run what is below.
    urllib.request.install_opener(
        urllib.request.build_opener(urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    )

if __name__ == "__main__":
    from img2dataset import download

    download(**json.loads(sys.argv[1]))
