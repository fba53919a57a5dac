"""Original bytes in, the stored image or a cause out.

Read `processor.py` first, then `decoding.py` (bytes to pixels, strictly), `resizing.py` and `exif.py`. Only workers
import this: OpenCV is slow to load.
"""

from ingest.images.processor import ImageProcessor

__all__ = ["ImageProcessor"]
