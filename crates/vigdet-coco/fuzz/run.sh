#!/bin/sh
# Builds the fuzz target with a stable compiler and runs it: ./run.sh SECONDS [libFuzzer options]
set -e
cd "$(dirname "$0")"
seconds=${1:-600}
[ $# -gt 0 ] && shift
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# Blocks of a file are read in parallel; in turn, the same input always takes the same way.
export RAYON_NUM_THREADS=1
cargo build --release --target "$(rustc -vV | sed -n 's/^host: //p')"
mkdir -p corpus/readers artifacts
exec target/*/release/readers corpus/readers seeds -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -dict=json.dict -artifact_prefix=artifacts/ "$@"
