# Two commands do everything: `make demo` and `make test`. Each sets the environment up the first time.
# One shell a recipe, stopping at the first error.
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-demo test-long test-faults bench-ingest bench-cache bench-loader bench-distill bench-losses bench-inheritance bench-plan bench-manifest bench-near bench-scale bench-cluster bench-quick lint types format tree lock clean

demo: $(READY)
	exec $(BIN)/clipstill demo --out demo-out

# Three at once on two cores, as many tests wait for servers, time-outs and Ray; long files first (tests/conftest.py).
test: $(READY)
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25

# A small demo, whole: about a minute.
test-demo: $(READY)
	$(BIN)/pytest -m demo

# The whole demo killed at every stage, an ingest killed fifty times, 40,000 damaged files, and clusters that lose
# machines: about 35 minutes.
test-long: $(READY)
	$(BIN)/pytest -m long --timeout 900 --ignore tests/faults/test_campaign.py

# More than two hundred kills over three stages on a store that fails, fifty of an ingest on Ray, full disks, outages,
# single deaths, and every command on a cluster that loses machines or its head: over an hour.
test-faults: $(READY)
	$(BIN)/pytest -m long --timeout 3600 tests/faults

# Ours against img2dataset and Daft, about 32 minutes on an otherwise idle machine; installs those two on first use.
bench-ingest: $(READY)
	exec $(BIN)/python -m benchmarks.ingest

# The teacher cache: building, size, reading beside DataCompDR's files, memory; about 10 minutes, likewise.
bench-cache: $(READY)
	exec $(BIN)/python -m benchmarks.cache

# The trainer: steps from the cache beside plain CLIP's and live teachers', loss curves; a quarter of an hour, likewise.
bench-distill: $(READY)
	exec $(BIN)/python -m benchmarks.distill

# Memory of losses in parts beside its formula; a few minutes, likewise.
bench-losses: $(READY)
	exec $(BIN)/python -m benchmarks.distill.losses

# Inherited weights beside none, on product photos that you have: DATA=path/to/fashion.parquet; about 20 minutes.
bench-inheritance: $(READY)
	exec $(BIN)/python -m benchmarks.inheritance $(DATA)

# The loader beside open_clip's pipeline, torchvision, SPDL and DALI, under 8 minutes, likewise.
bench-loader: $(READY)
	exec $(BIN)/python -m benchmarks.loader

# The plan of 20 million rows: first shard, CPU, memory, disk, killed and gone on with; 5 to 15 minutes.
bench-plan: $(READY)
	exec $(BIN)/python -m benchmarks.plan

# Opening a dataset of 100,000 shards: seconds and memory; under 3 minutes.
bench-manifest: $(READY)
	exec $(BIN)/python -m benchmarks.manifest

# Near duplicates among a million hashes: time, memory, what is found; a few minutes, likewise.
bench-near: $(READY)
	exec $(BIN)/python -m benchmarks.near

# A trainer's first batch of 400 million samples, a driver of 100,000 shards: seconds and memory; 6 GB in $TMPDIR.
bench-scale: $(READY)
	exec $(BIN)/python -m benchmarks.scale

# Two machines of one core beside one of two, on Ray clusters of this machine's: ingest and cache; about 15 minutes.
bench-cluster: $(READY)
	exec $(BIN)/python -m benchmarks.cluster

# Every benchmark once, as small as it goes and without peers: that they run, not how fast anything is. Three at once,
# as nothing is judged; what one says is in .bench/quick/NAME.log, and shown if it fails.
bench-quick: $(READY)
	mkdir -p .bench/quick
	printf '%s\n' ingest loader distill cache cluster scale inheritance plan near manifest | xargs -P 3 -I NAME sh -c \
		'$(BIN)/python -m benchmarks.NAME --quick > .bench/quick/NAME.log 2>&1 && echo "NAME ran" || \
		{ echo "NAME failed:"; cat .bench/quick/NAME.log; exit 1; }'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/tree.md: every file in a line, from the modules' docstrings.
tree: $(READY)
	$(BIN)/python docs/tree.py

# A stamp, written last: an installation that was interrupted is made again.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $(READY)

lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --no-emit-index-url --no-header --python-version 3.11 --extra dev \
		pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .bench demo-out
