# `make train` and `make test` need only make and Python 3.11 or newer: they build .venv in this folder
# the first time, and again when pyproject.toml changes. ARGS="…" is passed on to the program.

VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= 2
GPU_PY ?= python3
# One BLAS thread for each of the WORKERS processes, so that they do not compete for the cores.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# A worker without remaining tests takes some from another worker.
IN_PARALLEL = -n $(WORKERS) --dist worksteal
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --editable

.PHONY: help train test reached mutants kernels lowest pythons gpu lint format clean
.DELETE_ON_ERROR:

help:
	@echo "make train    train a small GPT, about three minutes    make train ARGS='--steps 300'"
	@echo "make test     prove every gradient                      make test ARGS='-k layernorm'"
	@echo "make kernels  the numeric tests under every OpenBLAS kernel that this CPU can execute"
	@echo "make lowest   the numeric tests and the formats, with the lowest versions that pyproject.toml allows"
	@echo "make pythons  import, train and generate with each Python from 3.11 to 3.14 on this machine"
	@echo "make mutants  plant small faults and count those that the tests see; run make reached first"
	@echo "make gpu      the tests and benchmarks that need a GPU; results in benchmarks/results; uses python3"
	@echo "make lint     ruff and mypy;  make format: format the code with ruff"
	@echo "make clean    remove .venv and caches (not runs/)"

train: $(VENV)/.train
	@test -n "$$VIRTUAL_ENV" || echo "The commands that are printed below need the environment: source $(VENV)/bin/activate"
	$(PY) -m gpt.train $(ARGS)

test: $(VENV)/.test
	$(ONE_THREAD) $(PY) -m pytest $(IN_PARALLEL) $(ARGS)

kernels: $(VENV)/.test
	$(ONE_THREAD) $(PY) scripts/blas_kernels.py $(IN_PARALLEL) $(ARGS)

lowest: $(PY)
	$(ONE_THREAD) $(PY) scripts/lowest.py $(IN_PARALLEL) $(ARGS)

pythons: $(PY)
	$(PY) scripts/pythons.py

# On a machine with an NVIDIA GPU: CUDA, CuPy, torch and pytest must be installed for GPU_PY; nothing is downloaded. Each stage
# takes at most ten minutes (`GPU_STAGE=1 make gpu` runs only the first). If a stage fails, the others run all the same.
gpu:
	$(GPU_PY) -m benchmarks gpu_stages $(GPU_STAGE)

# Plant small faults, one at a time, and count those that the tests see. `reached` records which test runs which line; then 300 mutants
# take an hour or two.
reached: $(VENV)/.test $(VENV)/.lint
	rm -f .reached .reached.xml
	$(ONE_THREAD) COVERAGE_FILE=.reached $(PY) -m pytest -q $(IN_PARALLEL) --cov=tensorlite --cov=gpt --cov=data --cov-context=test \
		--cov-report= -o junit_family=xunit1 --junitxml=.reached.xml $(ARGS)

mutants: $(VENV)/.test $(VENV)/.lint
	$(PY) scripts/mutants.py --workers $(WORKERS) $(ARGS)

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy --platform win32 --no-warn-unreachable --cache-dir .mypy_cache/win32
	$(PY) -m mypy --platform darwin --no-warn-unreachable --cache-dir .mypy_cache/darwin

format: $(VENV)/.lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# A stamp file means that a set of packages is installed for this pyproject.toml.
$(VENV)/.train: EXTRAS = plot
$(VENV)/.test: EXTRAS = plot,test
$(VENV)/.lint: EXTRAS = dev
$(VENV)/.train $(VENV)/.test $(VENV)/.lint: pyproject.toml $(PY)
	@echo "Installing the dependencies of tensorlite[$(EXTRAS)] into $(VENV) (once; some minutes for the tests, whose oracle is torch) …"
	$(INSTALL) ".[$(EXTRAS)]"
	@touch $@

$(PY):
	@sh scripts/make_venv.sh $(VENV)
