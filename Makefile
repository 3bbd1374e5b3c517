# make demo / make test set themselves up in .venv, once. An environment of yours is never changed: a torch that
# $(PYTHON) can import is borrowed (see .ci/set_up.py). Another Python: make PYTHON=/path/to/python test
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
SETTINGS := pyproject.toml constraints.txt .ci/set_up.py

# One thread per worker: two workers with two threads each on two cores wait for each other. The tests start hundreds of
# processes, of which each takes a third longer where bytecode is not kept.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false \
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

.PHONY: demo test lint types pytest recipes pages report processors mutants bench gpu nightly clean

$(VENV)/ready: $(SETTINGS)
	@test -n "$(PYTHON)" || { echo "Halter needs Python 3.11 or newer: make PYTHON=/path/to/python ..."; exit 2; }
	@$(PYTHON) .ci/set_up.py $(VENV)
	@touch $@

$(VENV)/ready-dev: $(SETTINGS)
	@test -n "$(PYTHON)" || { echo "Halter needs Python 3.11 or newer: make PYTHON=/path/to/python ..."; exit 2; }
	@$(PYTHON) .ci/set_up.py $(VENV) --dev
	@touch $(VENV)/ready $@

demo: $(VENV)/ready
	@$(BIN)/halter demo

# The order is from quick to slow, and pytest's closing line comes last.
test: lint types pytest

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	$(BIN)/mypy halter examples

pytest: $(VENV)/ready-dev
	$(PYTEST)

# recipes/ holds what `halter init` writes; a test says when it has grown old.
recipes: $(VENV)/ready
	for m in $$($(BIN)/python -c "from halter.recipe.sections import method_names as n; print(*n())"); \
		do $(BIN)/halter init $$m - > recipes/$$m.yaml; done

# docs/methods is written from the methods' own files, docs/measured/survey-tables.md from their counts and what was measured.
pages: $(VENV)/ready
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_survey_tables.py
	$(BIN)/python docs/make_llama4_plan.py
	$(BIN)/python docs/make_completion.py

# The example report: ten minutes, on the playground. Interrupted, it goes on; trials and adapters stay in build/.
report: $(VENV)/ready-dev
	$(BIN)/halter compare --quick --output build/example-report
	rm -rf docs/measured/example-report && mkdir -p docs/measured/example-report
	cp -r build/example-report/record.json build/example-report/recipes docs/measured/example-report/
	$(BIN)/python -m halter.comparison.report docs/measured/example-report/record.json docs/measured/example-report
	$(BIN)/python docs/make_survey_tables.py

# What computes in the suite, as other processors would run it: half an hour on two cores. ONLY='2 5' for some settings.
processors: $(VENV)/ready-dev
	$(BIN)/python tests/processors.py $(if $(ONLY),--only $(ONLY)) $(if $(PAGE),--page)

mutants: $(VENV)/ready-dev
	$(BIN)/python tests/mutants/run.py

# Every side of every row in a process of its own: hours with the peers; BENCH='decode-1 --quick' for less.
bench: $(VENV)/ready-dev
	$(BIN)/python benchmarks/run.py $(BENCH) --json bench.json --page

# Whoever is lent a GPU runs this first, with the Python that has its torch: eight minutes, no network, no set-up.
gpu:
	$(PYTHON) benchmarks/gpu.py --page

nightly: $(VENV)/ready-dev
	$(PYTEST) -m "nightly or not nightly"
	$(BIN)/python tests/mutants/run.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
