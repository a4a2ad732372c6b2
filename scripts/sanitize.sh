#!/bin/sh
# Runs the tests of the crates with unsafe code that need no libtorch under the address sanitizer of a nightly compiler,
# else under valgrind, which knows no AVX-512: the kernels then take their AVX2 code.
set -e
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
if cargo +nightly --version >/dev/null 2>&1; then
    RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p vigdet-kernels -p vigdet-coco --lib --target "$host" \
        --target-dir target/sanitize
else
    CARGO_TARGET_DIR=target/valgrind
    export CARGO_TARGET_DIR
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind --error-exitcode=9 -q" \
        cargo test -p vigdet-kernels -p vigdet-coco --lib --target "$host"
fi
