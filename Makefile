# Two commands do everything: `make book` renders the executed book, `make test` runs every check.
# A third, `make clients`, runs the optimizers in other people's training loops.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Other people's training loops stay out of the book's environment: nothing there may come to need them.
CLIENTS := .venv-clients
CLIENTS_READY := $(CLIENTS)/.ready

# One thread each: small matrices gain nothing from more, results repeat, and timings mean something.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

# LIVE=1 builds the site with Python in its pages; its parts are fetched from the package registries, by hash.
export LIVE

.PHONY: book pdf serve test live-test clients lab lint bench clean help

help:
	@echo "make book   execute and render the book into _build/html"
	@echo "make book LIVE=1  the same with a Run button on the cells that need no PyTorch (45 MB, loaded when pressed)"
	@echo "make pdf    print the book into _build/pdf (needs a Chromium)"
	@echo "make serve  serve the site on this machine, which Run buttons need"
	@echo "make test   run every test, the built site included"
	@echo "make live-test  press every Run button and compare with what the build computed"
	@echo "make clients  run our optimizers in Lightning, Accelerate, Trainer, timm, PEFT (own environment)"
	@echo "make lint   ruff, the type checker, and which way imports run"
	@echo "make bench  measure what the methods cost, beside a plain loop and a peer (twenty minutes)"
	@echo "make lab    open the chapters in JupyterLab"
	@echo "make clean  remove _build and caches (keeps .venv)"

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

book: $(READY)
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "The book is at $(CURDIR)/_build/html/index.html"

serve: $(READY)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html

live-test: $(READY)
	LIVE=1 $(BIN)/python -m pytest tests/live -rP

pdf: book
	$(BIN)/python -m book.editions.pdf

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

$(CLIENTS_READY): requirements.txt requirements-clients.txt pyproject.toml
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -q -c requirements.txt -r requirements-clients.txt
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

clients: $(CLIENTS_READY)
	$(CLIENTS)/bin/python -m pytest tests/clients -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m book.experiments.bench

lab: $(READY)
	PYTHONPATH="$(CURDIR)" JUPYTER_CONFIG_PATH="$(CURDIR)/book/_lab" $(BIN)/jupyter lab book

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
