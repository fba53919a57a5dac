"""The kit of every HTML page: one look, one chart maker, one way to render. A page is one file with nothing outside it.

Text is escaped, nothing is loaded from elsewhere, and no script runs but the kit's own, which shows values under the
pointer. Pages follow the reader's light or dark setting, are read on a telephone, and print.

Read `rendering.py` first, with `base.html.j2` (what pages extend), `parts.html.j2` (macros) and `style.html.j2` (the
one style sheet); then `plot.py` (axes, histograms, dots), `curves.py`, `sheet.py` (contact sheets) and `words.py`.
"""

from pages.rendering import render

__all__ = ["render"]
