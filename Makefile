# Every target sets up the virtual environment first. Choose another Python with PYTHON=, the build of torch with
# TORCH_INDEX= (for example https://download.pytorch.org/whl/cpu or …/whl/cu130), a place for the environment with VENV=.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help demo results result-tables zoo cards test test-slow test-table check common-tests gpu-check attention-memory smoke-learning
.PHONY: publish-walkthrough app-picture audit bench clean
help:
	@echo "make demo          train five architectures on the same text and compare them (about 5 minutes on 2 cores)"
	@echo "make results       all benchmarks and the demo, into results/, the README and the recipes (many hours)"
	@echo "                   TASK=music | jsb_chorales | jsb_chorales/gru: one part; SEEDS=\"0 1\", AT_A_TIME=2, THREADS=1,"
	@echo "                   DATA= (folder of data sets; default: data, then ../shared/data), OVERWRITE=1 repeats"
	@echo "make result-tables only the tables and pictures, from results/"
	@echo "make zoo           train the models of zoo/ anew and write their folders (about 10 minutes)"
	@echo "make cards         the cards in model_cards/, from results/"
	@echo "make publish-walkthrough  train, export, doctor, card, push, load, push again, on a Hub of this machine"
	@echo "make app-picture   the picture of the web page in results/ (needs Chromium)"
	@echo "make audit         known vulnerabilities of the tested versions (asks PyPI)"
	@echo "make test          the tests (under 10 minutes on 2 cores)"
	@echo "make test-slow     the full table of options"
	@echo "make test-table    all tests, and the README's table architecture × head from them"
	@echo "make check         ruff, mypy, and the wheel in a clean environment"
	@echo "make common-tests  transformers' own tests on our architectures (downloads its source once)"
	@echo "make attention-memory  memory of the attention patterns by length of the text, into results/ (half a minute)"
	@echo "make bench         two processes beside one, one thread each: tokens/s and losses, into results/ (6 minutes, idle)"
	@echo "make smoke-learning  does every system learn? synthetic tasks, results/learning/ (under 45 minutes on 2 cores)"
	@echo "make gpu-check     what only a GPU can show (up to 8 minutes)"

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch -c constraints.txt
	$(PIP) install -e '.[dev]' -c constraints.txt
	touch $@

demo: $(VENV)/.installed
	$(OFFLINE) $(BIN)/hf-seqmodels demo --output_dir runs/demo --overwrite

# What is finished is not repeated, what was interrupted goes on. Groups: synthetic, music, language, lm.
TASK ?=
SEEDS ?=
DATA ?=
THREADS ?=
AT_A_TIME ?=
OVERWRITE ?=
results: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m hf_seqmodels.results $(if $(TASK),--task $(TASK)) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(DATA),--data $(DATA)) $(if $(AT_A_TIME),--workers $(AT_A_TIME)) $(if $(THREADS),--threads $(THREADS)) \
	  $(if $(OVERWRITE),--overwrite)

result-tables: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m hf_seqmodels.results --tables

zoo: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m hf_seqmodels.zoo zoo

cards: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m hf_seqmodels.hub.cards results model_cards

# The Hub is one of this machine, so nothing here is told to be offline.
publish-walkthrough: $(VENV)/.installed
	rm -rf runs/walkthrough
	PYTHONPATH=tests $(BIN)/python tests/walkthrough.py runs/walkthrough --record results/publish_walkthrough.md

app-picture: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python tests/inference/screenshot.py zoo results/app.png

# Needs PyPI's own JSON service; a mirror without it fails here, as it should: nothing was audited then.
audit: $(VENV)/.installed
	$(PIP) install -q pip-audit
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip --strict

test: $(VENV)/.installed
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS)

test-slow: $(VENV)/.installed
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(WORKERS)

test-table: $(VENV)/.installed
	$(OFFLINE) OMP_NUM_THREADS=1 HF_SEQMODELS_TEST_TABLE=1 $(BIN)/python -m pytest -n $(WORKERS) --deselect tests/rules/test_table.py
	PYTHONPATH=tests $(BIN)/python tests/coverage_table.py

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(OFFLINE) $(BIN)/python tests/wheel_check.py

common-tests: $(VENV)/.installed
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python tests/common/run.py

gpu-check: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python tests/gpu/gpu_check.py

attention-memory: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m hf_seqmodels.evaluation.attention_memory results/attention_memory.csv

# On a machine with nothing else to do: the load before the start stands in the result.
bench: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python -m hf_seqmodels.evaluation.scaling results/scaling.json
	$(BIN)/python -m hf_seqmodels.results --tables

# One check at a time, each of a few minutes; what misses its bar is recorded, and the others run all the same.
smoke-learning: $(VENV)/.installed
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m hf_seqmodels.learning --checkout .

clean:
	rm -rf $(VENV) build dist runs .cache .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
