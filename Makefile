# make demo    what the README promises: trains the headline sweep on CartPole and draws its figures
# make test    the test suite
# make check   style and types
# make lines   the line numbers in docs/, after code has moved
# Everything runs in .venv, made on the first call; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-with
SEEDS := 0,1,2

.PHONY: demo test slow check lines clean

# torch first and by its pin: a machine that offers a CPU build of just that version gets it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("a3c_bench needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m a3c_bench.run -m algo=a3c,ga3c,paac seed=$(SEEDS)
	$(BIN)/python -m analysis.curves runs/default
	$(BIN)/python -m analysis.lag runs/default

test: $(INSTALLED)
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --timeout 1800

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lines: $(INSTALLED)
	$(BIN)/python docs/refresh_lines.py

clean:
	rm -rf $(VENV) runs dist
