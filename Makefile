# Everything works from a fresh clone: each target makes .venv itself.

VENV    ?= .venv
PYTHON  ?= python3
MODEL   ?= matsuo-lab/weblab-10b-instruction-sft
QUANT   ?= Q4_K_M
DEMO    := convert/demo/weblab-demo-instruction-sft

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

.DEFAULT_GOAL := help
.PHONY: help install convert verify chat eval demo test check clean

help: ## Show this list
	@echo "weblab-local: weblab-10b-instruction-sft on your own computer"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  variables: BACKEND=cpu|cuda|metal|vulkan  MODEL=folder-or-hub-id  REVISION=...  QUANT=\"Q4_K_M Q8_0\""
	@echo "             OUTPUT=folder  FORCE=1  LOW_DISK=1  IMATRIX=1|file  HTML=file  JSON=file  TEXTS=file"

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(BIN)/python -m convert.install $(if $(BACKEND),--backend $(BACKEND))
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.installed
	$(BIN)/python -m convert.install $(if $(BACKEND),--backend $(BACKEND)) --extras convert,server,eval,dev
	@touch $@

$(VENV)/.installed-eval: pyproject.toml constraints.txt | $(VENV)/.installed
	$(BIN)/python -m convert.install $(if $(BACKEND),--backend $(BACKEND)) --extras convert,server,eval
	@touch $@

install: $(VENV)/pyvenv.cfg ## Install into .venv; BACKEND chooses what llama.cpp is compiled for
	$(BIN)/python -m convert.install $(if $(BACKEND),--backend $(BACKEND))
	@touch $(VENV)/.installed

convert: $(VENV)/.installed ## Download the model and convert it; the result goes to your data directory
	@$(BIN)/python -m convert "$(MODEL)" --quant "$(QUANT)" $(if $(REVISION),--revision "$(REVISION)") \
		$(if $(OUTPUT),--output "$(OUTPUT)") $(if $(IMATRIX),--imatrix "$(if $(filter 1,$(IMATRIX)),auto,$(IMATRIX))") \
		$(if $(FORCE),--force) $(if $(LOW_DISK),--low-disk)

verify: $(VENV)/.installed ## Compare what was converted with the model it was made from; FILES="..." for others
	@$(BIN)/python -m convert.verify "$(MODEL)" $(or $(FILES),$(if $(OUTPUT),"$(OUTPUT)")) \
		$(if $(REVISION),--revision "$(REVISION)") $(if $(HTML),--html "$(HTML)") $(if $(JSON),--json "$(JSON)") \
		$(if $(TEXTS),--texts "$(TEXTS)")

chat: $(VENV)/.installed ## Talk with the newest converted model
	@$(BIN)/weblab-local chat

eval: $(VENV)/.installed-eval ## The model card's benchmark on the newest model; SUITE=jglue-8 TASKS=... DATA=folder LIMIT=100
	@$(BIN)/weblab-local eval $(if $(SUITE),--suite "$(SUITE)") $(if $(TASKS),--tasks "$(TASKS)") \
		$(if $(DATA),--data "$(DATA)") $(if $(LIMIT),--limit "$(LIMIT)")

demo: $(VENV)/.installed ## The whole road on the demo checkpoint: convert it, ask it the model card's question
	@model=$$($(BIN)/python -m convert $(DEMO) --quant "$(firstword $(QUANT))" --output build/demo --force) && \
		$(BIN)/weblab-local generate --model "$$model" --temperature 0 大規模言語モデルについて説明してください。

test: $(VENV)/.installed-dev ## Run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev ## Run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## Remove .venv and what was built here; converted models stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find weblab_local convert tests -name __pycache__ -type d -prune -exec rm -rf {} +
