"""Original bytes in, the stored image or a cause out.

Read `processor.py` first, then `resizing.py` and `exif.py`; `pictures` reads the originals. Only workers
import this: OpenCV is slow to load.
"""

from ingest.images.processor import ImageProcessor

__all__ = ["ImageProcessor"]
