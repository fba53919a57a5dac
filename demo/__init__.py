"""The whole path on data the demo makes itself: web server, URL list, shards, teacher, cache, students, numbers, page.

Read `run.py` first, which `launch.py` starts; it calls the stages exactly as their commands do. `scenes.py` draws the
images, `server.py` is the web they come from, `speed.py` times the three kinds of step, `page.py` tells what came of
it.
"""
