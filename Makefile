# Everything runs in a virtual environment of its own; PYTHON names the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: sample report test test-all lint bench bench-sites clean

# One trained world model, rolled out twice from a real first frame: in full, and with worldcache.
sample: $(STAMP)
	$(BIN)/diffcache sample --model tiny-world --method worldcache --compare --out out/tiny-world.png

# Example reports: methods, other packages' caches and fewer steps, side by side (each under 15 minutes on two cores).
report: $(STAMP)
	for model in tiny-dit tiny-wan tiny-world; do \
	  $(BIN)/diffcache report --model $$model --out out/report-$$model --overwrite || exit 1; \
	done

# The models of the tests are tiny and take one thread each: a process for each core.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder -m "not slow" tests diffcache

test-all: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder tests diffcache

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check diffcache tests samples

# The tables of the README: overhead, achieved speed-up, quality at equal time (about 25 minutes on two cores).
bench: $(STAMP)
	$(BIN)/python samples/measure.py --out out/bench

# Overhead, memory and host reads of each site, beside diffusers' hooks: docs/measured-sites.md.
bench-sites: $(STAMP)
	$(BIN)/python samples/measure_sites.py --out docs/measured-sites.md

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) out build *.egg-info
