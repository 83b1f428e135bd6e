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
	for model in tiny-dit tiny-wan tiny-world tiny-llada tiny-sdar; do \
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

# Every method swept over its knob, beside other packages' caches: docs/measured-<model>.md (50 minutes on two cores;
# interrupted, it goes on where it stopped).
SWEEPS := none,auto:speedup=[2,3,4],auto:min_psnr=30,worldcache:computed=[12,16,24],powerlaw:computed=[16,24],$\
  worldcache-partial:computed=[8,12],fora:interval=3,taylorseer:interval=[2,3],hicache:interval=3,$\
  fbcache:threshold=[0.12,0.24],teacache:threshold=[0.1,0.2],magcache:threshold=[0.06,0.12],$\
  easycache:threshold=[0.06,0.12],diffusers:first-block:threshold=[0.12,0.24],diffusers:taylorseer:cache_interval=3,$\
  diffusers:mag:threshold=[0.06,0.12,0.24],cache-dit:dbcache:residual_diff_threshold=[0.12,0.24],$\
  cache-dit:dbcache+taylorseer:residual_diff_threshold=[0.12,0.24]
bench: $(STAMP)
	for model in tiny-dit tiny-wan tiny-world; do \
	  $(BIN)/diffcache report --model $$model --methods '$(SWEEPS)' --seeds 16 --out out/bench-$$model --resume && \
	  cp out/bench-$$model/report.md docs/measured-$$model.md || exit 1; \
	done

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
