#!/usr/bin/env bash
# Installs the servers that `make test-full` uses into .cache/servers: vLLM for a CPU, llama.cpp with its converter, which is
# built from its source package, and MLflow. A first run takes about 15 minutes on two cores.
# Does nothing if the locks are those of the last run.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { printf '[servers] %s\n' "$*" >&2; }
uv=$PWD/.venv/bin/uv
servers=.cache/servers

# fresh NAME FILE...: whether the server NAME was installed from these files.
wanted() { { .venv/bin/python --version; cat "$@"; } | sha256sum | cut -c1-64; }
fresh() { [[ -f $servers/$1.stamp && $(<"$servers/$1.stamp") == "$(wanted "${@:2}")" && -d $servers/$1 ]]; }
environment() { "$uv" venv --quiet --clear --python "$PWD/.venv/bin/python" "$servers/$1"; }
install() { "$uv" pip install --quiet --python "$servers/$1/bin/python" --require-hashes "${@:2}"; }

install_vllm() {
  local files=(requirements/vllm.txt scripts/tools/model_servers.sh) started=$SECONDS
  if fresh vllm "${files[@]}"; then say "vLLM is already installed"; return; fi
  say "installing vLLM (torch brings 3 GB)"
  rm -f "$servers/vllm.stamp"
  environment vllm
  install vllm --no-deps --requirement requirements/vllm.txt
  wanted "${files[@]}" >"$servers/vllm.stamp"
  say "installed vLLM in $((SECONDS - started)) s"
}

install_llama_cpp() {
  local lock=requirements/llama-cpp.txt python=$servers/llama-cpp/bin/python started=$SECONDS
  local files=("$lock" scripts/tools/model_servers.sh) package=llama-cpp-python
  if fresh llama-cpp "${files[@]}"; then say "llama.cpp is already built"; return; fi
  if ! command -v g++ >/dev/null; then
    say "installing g++"
    # The lock is needed because other parts of set-up can call apt-get at the same time.
    flock /var/lock/finetune-apt sh -c 'apt-get update -q && apt-get install -yq --no-install-recommends g++' >&2
  fi
  rm -rf "$servers/llama-cpp.stamp" "$servers/llama.cpp"
  environment llama-cpp
  local download=$PWD/$servers/llama.cpp
  mkdir -p "$download"
  # The build tools come from the lock, so nothing is fetched while it builds.
  awk -v name="$package" '/^[a-z]/ { skip = index($0, name "==") == 1 } !skip' "$lock" >"$download/tools.txt"
  awk -v name="$package" '/^[a-z]/ { keep = index($0, name "==") == 1 } keep' "$lock" >"$download/package.txt"
  install llama-cpp --no-deps --requirement "$download/tools.txt"
  PATH=$PWD/$servers/llama-cpp/bin:$PATH "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
    --no-build-isolation --require-hashes --dest "$download" --requirement "$download/package.txt"
  say "building llama.cpp"
  tar --extract --gzip --file "$download"/*.tar.gz --directory "$download" --strip-components 3 --wildcards \
    '*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/gguf/*'
  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF" \
    PATH=$PWD/$servers/llama-cpp/bin:$PATH "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --no-build-isolation "$download"/*.tar.gz
  rm -f "$download"/*.tar.gz "$download"/*.txt
  wanted "${files[@]}" >"$servers/llama-cpp.stamp"
  say "built llama.cpp in $((SECONDS - started)) s"
}

install_trackers() {
  local files=(requirements/trackers.txt scripts/tools/model_servers.sh) started=$SECONDS
  if fresh trackers "${files[@]}"; then say "MLflow is already installed"; return; fi
  say "installing MLflow"
  rm -f "$servers/trackers.stamp"
  environment trackers
  install trackers --no-deps --requirement requirements/trackers.txt
  wanted "${files[@]}" >"$servers/trackers.stamp"
  say "installed MLflow in $((SECONDS - started)) s"
}

mkdir -p "$servers"
install_trackers
install_vllm
install_llama_cpp
