# The only door. Every target makes the environment it needs; a second run finds it made.
#
#   make test PYTHON=python3.12               another interpreter
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                             PyTorch's wheels from its own index (cpu, cu126, cu130, ...) rather than PyPI's

PYTHON ?= python3
PROTOS_PYTHON ?= $(PYTHON)
ENSEMBLE ?= ensembles/digits
LISTEN ?= 127.0.0.1:50051
# What a contract must not break: the last release, or main before there is one.
AGAINST ?= $(shell git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || echo main)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MADE := .venv/.made
PROTOS_MADE := .venv-protos/.made
TRITON_MADE := .venv-triton/.made

# PyPI's where it is not set; an environment remembers the index that it was made with.
TORCH_INDEX_BEFORE := $(shell cat $(MADE) 2>/dev/null)
TORCH_INDEX ?= $(TORCH_INDEX_BEFORE)
TORCH := $(shell grep '^torch==' constraints.txt)

.DELETE_ON_ERROR:
.PHONY: help demo serve test test-reference check protos bench peers gpu digits clean without-torch

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 23

demo: $(MADE) ## serve the digits, ask real questions, show the answers
	$(BIN)/twinfer demo

serve: $(MADE) ## serve ENSEMBLE (ensembles/digits) on LISTEN (127.0.0.1:50051)
	$(BIN)/twinfer serve $(ENSEMBLE) --listen $(LISTEN)

test: $(MADE) $(PROTOS_MADE) $(TRITON_MADE) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-reference: $(MADE) ## compare with the models' own libraries over published configurations; damage files by the thousand
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/reference

check: $(MADE) $(PROTOS_MADE) build/audit/.made ## lint, types, contract, fresh stubs, layers, known vulnerabilities
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	@if git cat-file -e $(AGAINST):buf.yaml 2>/dev/null; then \
	  echo "buf breaking, against $(AGAINST)"; \
	  git archive $(AGAINST) buf.yaml protos | $(BIN)/buf breaking --against '-#format=tar'; \
	else echo "buf breaking: left out, no git revision $(AGAINST) to compare with"; fi
	$(BIN)/python -m pytest --quiet tests/test_protos.py tests/test_layering.py
	@$(BIN)/python -m tests.sizes
	@$(BIN)/python -m tests.audit build/audit/bin/pip-audit

protos: $(PROTOS_MADE) ## make the Python stubs from protos/
	.venv-protos/bin/python -W ignore protos/generate.py

bench: $(MADE) ## measure the server against the same models in-process
	$(BIN)/python -m benchmarks.serving --result benchmarks/results/serving-cpu.json $(ARGS)

peers: $(MADE) build/peers/mosec/.made build/peers/triton/.made ## measure the server beside other servers, and judge its marks
	$(BIN)/python -m benchmarks.peers --result benchmarks/results/peers-cpu.json $(ARGS)

gpu: $(MADE) ## run all that only a GPU can show, in nine minutes; ARGS=--small tries the script on any machine
	$(BIN)/python -m benchmarks.gpu --result build/gpu.json $(ARGS)

digits: $(MADE) ## train the models of ensembles/digits again
	$(BIN)/python ensembles/digits/train.py
	$(BIN)/python -m twinfer_server.trust ensembles/digits/*.pt2 > build-trusted.txt
	mv build-trusted.txt service/twinfer_server/trusted.txt

clean: ## remove the environments, caches and builds
	rm -rf .venv .venv-protos .venv-triton build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments -------------------------------------------------------------------------------------------------------

# torch comes first, by itself: it is the slow one, so pip may show its progress, and only it may come from another index.
# ("==2.13.0" accepts 2.13.0+cpu and 2.13.0+cu130 alike, so one pin does for every index.)
$(MADE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("twinfer needs Python 3.11 or newer: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) freeze | grep -qE '^$(TORCH)(\+|$$)' || { echo "Making .venv: PyTorch first, which takes a while ..." && \
	  $(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),--constraint constraints.txt) $(TORCH); }
	@echo "Making .venv: everything else ..."
	@$(PIP) install --quiet --constraint constraints.txt hatchling
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[server,fit,bench,dev]'
	@echo "$(TORCH_INDEX)" > $@

# The peers' environments see torch and everything else of .venv behind their own packages. Where one cannot be made, the
# benchmark says so in its table and goes on.
build/peers/mosec/.made: PACKAGES := mosec==0.9.8
build/peers/triton/.made: PACKAGES := nvidia-pytriton==0.7.0
build/peers/%/.made: $(MADE)
	@echo "Making build/peers/$*: $(PACKAGES) ..."
	@$(BIN)/python -m venv build/peers/$*
	@build/peers/$*/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: $(PACKAGES) || rm -rf build/peers/$*
	@test ! -d build/peers/$* || { \
	  site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(BIN)/python -c "$$site" > "$$(build/peers/$*/bin/python -c "$$site")/beside.pth" && touch $@; }

# pip-audit has its own environment, for it brings many packages. Where it cannot be made, the check says so and goes on.
build/audit/.made: $(MADE)
	@echo "Making build/audit: pip-audit ..."
	@mkdir -p $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: pip-audit==2.9.0 || true
	@touch $@

# Another TORCH_INDEX than the environment was made with brings another torch.
ifneq ($(TORCH_INDEX),$(TORCH_INDEX_BEFORE))
$(MADE): without-torch
endif
without-torch:
	@test ! -x $(BIN)/python || $(PIP) uninstall --quiet --yes torch
	@rm -f $(MADE)

# The stubs' generator has its own environment: it needs protobuf 5, and a setuptools that still has pkg_resources.
# Its output asks for grpcio >= 1.66.2 and protobuf >= 5.27.2, and loads on protobuf 5, 6 (which warns that it is older) and 7.
# It has wheels up to Python 3.13. Without it the tests still run, and the one that needs it says what it lacks.
$(PROTOS_MADE): Makefile
	@echo "Making .venv-protos: the generator of the stubs ..."
	@test -x .venv-protos/bin/python || $(PROTOS_PYTHON) -m venv .venv-protos
	@if .venv-protos/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: \
	  grpcio-tools==1.66.2 grpcio==1.66.2 protobuf==5.29.6 setuptools==80.9.0; then touch $@; \
	else rm -rf .venv-protos; echo "No generator: make PROTOS_PYTHON=python3.13 gives it a Python that it has wheels for."; fi

# Triton's client has its own environment, for it pins protobuf. Without it the tests still run, and those that need it say so.
$(TRITON_MADE): Makefile
	@echo "Making .venv-triton: a client of somebody else's ..."
	@test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	@if .venv-triton/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: \
	  'tritonclient[grpc]==2.73.0' grpcio==1.85.1 numpy==2.4.6 packaging==26.3 protobuf==6.33.6 python-rapidjson==1.25 \
	  urllib3==2.8.0; then touch $@; \
	else rm -rf .venv-triton; echo "No tritonclient: the tests with it are skipped."; fi
