# Everything works from a fresh clone: each target makes .venv itself. On Windows: in Git Bash, which has awk, touch, rm.

VENV    ?= .venv
MODEL   ?= matsuo-lab/weblab-10b-instruction-sft
QUANT   ?=
DEMO    := convert/demo/weblab-demo-instruction-sft
ADAPTER := convert/demo/weblab-demo-adapter

ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN    := $(VENV)/Scripts
else
PYTHON ?= python3
BIN    := $(VENV)/bin
endif

INSTALL = $(BIN)/python -m convert.install $(if $(BACKEND),--backend $(BACKEND)) $(if $(PORTABLE),--$(if $(filter 0,$(PORTABLE)),no-)portable) $(if $(V),--verbose)

.DEFAULT_GOAL := help
.PHONY: help install convert verify chat eval demo app wheel test test-app test-clients test-gpu check clean

help: ## Show this list
	@echo "weblab-local: weblab-10b-instruction-sft on your own computer"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  variables: BACKEND=cpu|cuda|metal|vulkan  MODEL=folder-or-hub-id  REVISION=...  QUANT=\"W4 Q8_0\""
	@echo "             OUTPUT=folder  FORCE=1  LOW_DISK=1  IMATRIX=1|file  TOKENIZER=folder  LORA=adapter=scale"
	@echo "             HTML=file  JSON=file  TEXTS=file"
	@echo "             V=1 shows what pip says; otherwise it is in build/install.log"

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@$(INSTALL)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.installed
	@$(INSTALL) --extras convert,server,eval,dev
	@touch $@

$(VENV)/.installed-eval: pyproject.toml constraints.txt | $(VENV)/.installed
	@$(INSTALL) --extras convert,server,eval
	@touch $@

install: $(VENV)/pyvenv.cfg ## Install into .venv; BACKEND and PORTABLE=1 say what llama.cpp is compiled for
	@$(INSTALL)
	@touch $(VENV)/.installed

convert: $(VENV)/.installed ## Download the model and convert it; the result goes to your data directory
	@$(BIN)/python -m convert "$(MODEL)" $(if $(QUANT),--quant "$(QUANT)") $(if $(REVISION),--revision "$(REVISION)") \
		$(if $(OUTPUT),--output "$(OUTPUT)") $(if $(IMATRIX),--imatrix "$(if $(filter 1,$(IMATRIX)),auto,$(IMATRIX))") \
		$(if $(FORCE),--force) $(if $(LOW_DISK),--low-disk) $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") \
		$(foreach adapter,$(LORA),--lora "$(adapter)")

verify: $(VENV)/.installed ## Compare what was converted with the model it was made from; FILES="..." for others
	@$(BIN)/python -m convert.verify "$(MODEL)" $(or $(FILES),$(if $(OUTPUT),"$(OUTPUT)")) \
		$(if $(REVISION),--revision "$(REVISION)") $(if $(HTML),--html "$(HTML)") $(if $(JSON),--json "$(JSON)") \
		$(if $(TEXTS),--texts "$(TEXTS)") $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") \
		$(foreach adapter,$(LORA),--lora "$(adapter)")

chat: $(VENV)/.installed ## Talk with the newest converted model
	@$(BIN)/weblab-local chat

eval: $(VENV)/.installed-eval ## The model card's benchmark on the newest model; SUITE=jglue-8 TASKS=... DATA=folder LIMIT=100
	@$(BIN)/weblab-local eval $(if $(SUITE),--suite "$(SUITE)") $(if $(TASKS),--tasks "$(TASKS)") \
		$(if $(DATA),--data "$(DATA)") $(if $(LIMIT),--limit "$(LIMIT)")

# The questions are in files: on Windows, make passes arguments on in the system's character set.
demo: $(VENV)/.installed ## The whole road on the demo checkpoint: convert it, with an adapter and without, and ask it
	@model=$$($(BIN)/python -m convert $(DEMO) --lora $(ADAPTER) $(if $(QUANT),--quant "$(firstword $(QUANT))") --output build/demo --force) && \
		$(BIN)/weblab-local generate --model "$$model" --temperature 0 < convert/demo/adapter_question.txt
	@model=$$($(BIN)/python -m convert $(DEMO) $(if $(QUANT),--quant "$(firstword $(QUANT))") --output build/demo --force) && \
		$(BIN)/weblab-local generate --model "$$model" --temperature 0 < convert/demo/question.txt

app: $(VENV)/.installed-dev ## Build dist/weblab-local: a folder that runs without Python, on any processor of this kind
	@$(BIN)/python -m convert.app

wheel: $(VENV)/.installed-dev ## Write wheels for machines without a compiler to dist/
	@$(BIN)/python -m convert.wheel

# Each process computes with one thread, and none keeps a core busy while it waits for another.
test: $(VENV)/.installed-dev ## Run the tests, on all cores
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-app: app ## Build the app and test it, on old processors too (qemu-user)
	$(BIN)/python -m pytest tests/app

test-clients: $(VENV)/.installed-dev ## Install clients of OpenAI's and Ollama's APIs into build/clients, test them, print what works
	@$(BIN)/python -m tests.clients

test-gpu: $(VENV)/pyvenv.cfg ## Run the tests that want a device; BACKEND=vulkan, cuda, metal, or rpc for a local worker
	@$(subst --backend rpc,,$(INSTALL)) --extras convert,server,eval,dev
	WEBLAB_TEST_BACKEND=$(or $(BACKEND),$(error BACKEND=vulkan, cuda, metal or rpc is needed)) $(BIN)/python -m pytest tests/gpu

check: $(VENV)/.installed-dev ## Run ruff, mypy and import-linter, which holds the layers of both houses
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove .venv and what was built here; converted models stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find weblab_local convert tests -name __pycache__ -type d -prune -exec rm -rf {} +
