#!/usr/bin/env bash
# One visit to a bare CUDA machine with torch and triton: parity, speed, training. Run in the repository's root.
#
#   benchmarks/gpu_check.sh OUT [WHEELS]
#
# OUT gets the results, a log of each part, and Triton's cache (cache.tar.xz), which a later visit unpacks if it finds it
# in OUT: compiling is most of the time. WHEELS: a folder of wheels that the machine lacks (benchmarks/README.md says
# which). PARITY, SPEED and TRAINING set the minutes of the parts, COMMIT what is measured where git cannot tell.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
export PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton-of-gpu-check}
mkdir -p "$TRITON_CACHE_DIR"
[ -f "$out/cache.tar.xz" ] && tar xJf "$out/cache.tar.xz" -C "$TRITON_CACHE_DIR"
if [ -n "${2:-}" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$2"/*.whl || exit 1
  export PYTHONPATH=$site
fi
part() {
  timeout "$((60 * $2 + 30))" python3 benchmarks/gpu_check.py "$1" --minutes="$2" --results="$out" \
    ${COMMIT:+--commit="$COMMIT"} >"$out/$1.log" 2>&1
  local status=$?
  echo "$1: $status after $SECONDS s"
  return $status
}
pack() {  # what a compiled kernel is made of on its way is not read again
  tar cJf "$out/cache.tar.xz" --exclude='*.tt*ir' --exclude='*.llir' --exclude='*.ptx' -C "$TRITON_CACHE_DIR" .
}
part parity "${PARITY:-2}"
parity=$?
pack
# After a failure too: a visit is rare, and one bound may be missed by a hair. The tables name what failed.
part speed "${SPEED:-3}"
pack
part training "${TRAINING:-2}"
python3 benchmarks/gpu_check.py tables --results="$out"
pack
exit $parity
