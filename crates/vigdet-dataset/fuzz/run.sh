#!/bin/sh
# Builds the fuzz targets with a stable compiler and runs them one after another: ./run.sh SECONDS [TARGET]...
set -e
cd "$(dirname "$0")"
seconds=${1:-600}
[ $# -gt 0 ] && shift
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# Images are looked at in parallel; in turn, the same input always takes the same way.
export RAYON_NUM_THREADS=1
cargo build --release --target "$(rustc -vV | sed -n 's/^host: //p')"
for target in ${*:-$(ls seeds)}; do
    mkdir -p "corpus/$target" artifacts
    echo "$target: $seconds seconds"
    target/*/release/"$target" "corpus/$target" "seeds/$target" -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 -artifact_prefix="artifacts/$target-"
done
