#!/bin/sh
# Runs the tests of vigdet-kernels, the one crate with unsafe code that needs no libtorch, under the address sanitizer
# of a nightly compiler, else under valgrind, which knows no AVX-512: the kernels then take their AVX2 code.
set -e
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
if cargo +nightly --version >/dev/null 2>&1; then
    RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p vigdet-kernels --lib --target "$host" \
        --target-dir target/sanitize
else
    variable=CARGO_TARGET_$(echo "$host" | tr 'a-z-' 'A-Z_')_RUNNER
    env "$variable=valgrind --error-exitcode=9 -q" \
        cargo test -p vigdet-kernels --lib --target "$host" --target-dir target/valgrind
fi
