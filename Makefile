# make demo: the main job on the embedded digits. make test: the tests. Both set up .venv here first.
# make bench: time of a training step, on an idle machine (20 minutes).
# make bench-memory: its memory, what kept memory is worth, the published layout, trained networks (as idle, half an hour).
# make bench-growth: how a step's cost grows, the whole loop of train, inactive samples, --pipeline, estimates of
# --dry-run; as idle (an hour). The times are sums of their parts' times, not runs of the whole.
# Where photographs are needed they take CIFAR-10 from LOCALSSL_DATA where that is set, and noise otherwise.
# make soak: what of benchmarks/reliability.md takes hours; fuzz.py and soak.py go on where their results stop.
# make test: two processes of one thread each, which is faster on two cores than of two.
# make test-long: the tests marked so: whole studies, notebooks, and processes that are killed or cut off (minutes).
# make test-lower: the tests with the lowest versions that pyproject.toml allows, in .venv-lower (Python 3.11 or 3.12).
# make dist: wheel and sdist in dist/, checked; the wheel then trains in an environment of its own, outside the repository.
# make site: the documentation as a site, in site/; strict, so that a broken link fails.
# TORCH picks a build of PyTorch, with any options of pip, e.g. make demo TORCH="torch==2.13.0 torchvision==0.28.0"
PYTHON ?= python3
TORCH ?=
PIP = .venv/bin/python -m pip install --disable-pip-version-check -q

LOWER = .venv-lower

.PHONY: demo test test-long test-lower lint docs site dist bench bench-memory bench-growth soak clean

demo: .venv/installed
	@echo "== training clapp++, clapp++dfb and bp-clapp++ on the embedded digits"
	.venv/bin/localssl reproduce demo --out runs

test: .venv/installed-test
	@echo "== tests (style, types, then pytest)"
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal -m "not long"

test-long: .venv/installed-test
	@echo "== whole studies, notebooks, pages, and processes that are killed or cut off (minutes)"
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal -m long

bench: .venv/installed
	@echo "== time of a training step against backpropagation (an idle machine, 20 minutes)"
	.venv/bin/python benchmarks/step.py --out benchmarks/results/step.json

bench-memory: .venv/installed
	@echo "== memory of a training step, with and without kept memory, and the published layout (an idle machine, half an hour)"
	.venv/bin/python benchmarks/memory.py --out benchmarks/results/memory.json
	.venv/bin/python benchmarks/allocator.py --out benchmarks/results/allocator.json
	.venv/bin/python benchmarks/published.py --out benchmarks/results/published.json
	.venv/bin/python benchmarks/weights.py --out benchmarks/results/weights.json
	.venv/bin/python benchmarks/step.py --trained 300 --widths 0.25 --repeats 21 --out benchmarks/results/step-trained.json

bench-growth: .venv/installed
	@echo "== how a training step grows, the whole loop, inactive samples, processes, estimates (an idle machine, an hour)"
	.venv/bin/python benchmarks/growth.py --out benchmarks/results/growth.json --figures docs/results/growth
	.venv/bin/python benchmarks/throughput.py --out benchmarks/results/throughput.json
	.venv/bin/python benchmarks/inactive.py --out benchmarks/results/inactive.json
	.venv/bin/python benchmarks/pipeline.py --repeats 6 --out benchmarks/results/pipeline.json
	.venv/bin/python benchmarks/estimates.py --out benchmarks/results/estimates.json

soak: .venv/installed
	@echo "== six hours of training with kills, 100 kills at random moments, a million damaged files, threads, a large data set"
	@echo "   (a day on two cores; 2 GB in /tmp while the large data set is there)"
	.venv/bin/python benchmarks/kills.py --kills 100 --out benchmarks/results/kills.json
	.venv/bin/python benchmarks/threads.py --epochs 1 --out benchmarks/results/threads.json
	.venv/bin/python benchmarks/large_data.py --folder /tmp --out benchmarks/results/large_data.json
	.venv/bin/python benchmarks/fuzz.py --inputs 1000000 --minutes 600
	.venv/bin/python -m pip install --disable-pip-version-check -q atheris
	.venv/bin/python benchmarks/fuzz_guided.py --seconds 30 --out benchmarks/results/fuzz_guided.json
	.venv/bin/python benchmarks/soak.py --minutes 360 --piece 60 --out benchmarks/results/soak.json
	.venv/bin/python benchmarks/soak.py --minutes 61 --piece 61 --kill-every 600 --out benchmarks/results/soak-whole.json
	.venv/bin/python benchmarks/oracle_mutants.py --out benchmarks/results/oracle_mutants.json
	.venv/bin/python benchmarks/reliability.py

test-lower: $(LOWER)/installed
	@echo "== tests with the lowest versions"
	OMP_NUM_THREADS=1 $(LOWER)/bin/python -m pytest -n 2 --dist worksteal

$(LOWER)/installed: pyproject.toml
	@echo "== installing the lowest versions that pyproject.toml allows into $(LOWER) (minutes)"
	test -x $(LOWER)/bin/python || $(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip install --disable-pip-version-check -q uv
	$(LOWER)/bin/uv pip install -q --python $(LOWER)/bin/python --resolution lowest-direct -e '.[test]'
	@touch $@

lint: .venv/installed-test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/pyright --pythonpath .venv/bin/python

docs: .venv/installed
	@echo "== writing the tables of docs/ that are made from the code"
	.venv/bin/python -m localssl.report.docs_tables docs
	.venv/bin/python -m localssl.experiments.reproduction docs

site: .venv/installed-docs
	@echo "== the documentation as a site, in site/"
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

dist: .venv/installed-dist
	@echo "== wheel and sdist, in dist/"
	rm -rf dist
	.venv/bin/python -m build
	.venv/bin/python -m twine check --strict dist/*
	@echo "== the wheel trains, probes, reports and makes the demo in an environment of its own (minutes)"
	.venv/bin/python tests/wheel.py dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "localssl needs Python 3.11 or newer; this is $$($(PYTHON) --version): use make PYTHON=python3.12 …"; exit 1; }
	@echo "== setting up .venv"
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	@echo "== installing localssl and what it needs (minutes, the first time)"
	$(if $(TORCH),$(PIP) $(TORCH))
	$(PIP) -e .
	@touch $@

.venv/installed-test: .venv/installed
	@echo "== installing what the tests need"
	$(PIP) -e '.[test]'
	@touch $@

.venv/installed-docs: .venv/installed
	@echo "== installing what the site needs"
	$(PIP) -e '.[docs]'
	@touch $@

.venv/installed-dist: .venv/installed
	@echo "== installing what builds the wheel"
	$(PIP) -e '.[dist]'
	@touch $@

clean:
	rm -rf .venv $(LOWER) site dist
