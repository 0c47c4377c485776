#!/usr/bin/env bash
# Everything that needs a GPU, in one script of less than nine minutes on one H100.
#
#   OUT=results bash benchmarks/gpu_check.sh            # on a machine with a GPU
#   OUT=results bash benchmarks/gpu_check.sh --rehearse # tiny sizes, on a CPU
#
# Run it in the repository's root with a Python that has PyTorch. What else is needed is imported
# from where the environment has it or, where SITE names an archive of unpacked wheels (.tar.xz),
# from there. FNN names a checkout of cajal/fnn; without it only this implementation is measured.
# PARTS chooses among: smoke step ends loading profile ways. Each part has its own limit of time,
# and one that fails does not stop the others; no part goes on after TOTAL seconds. Logs and tables go to $OUT, and the tables are
# printed again at the end.
set -uo pipefail
export PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore RAY_DEDUP_LOGS=0 TORCH_SHOW_CPP_STACKTRACES=0
PYTHON=${PYTHON:-python3}; OUT=$(realpath -m "${OUT:-gpu_check}"); ROOT=$PWD
SITE=${SITE:-.gpu/site.tar.xz}; FNN=${FNN:-.gpu/fnn}; WORK=$(mktemp -d)
TOTAL=${TOTAL:-525}; PARTS=${PARTS:-smoke step ends loading profile ways}
mkdir -p "$OUT"; trap 'rm -rf "$WORK"' EXIT
began=$(date +%s)
say() { echo "[$(($(date +%s) - began)) s] $*"; }

DEVICE=cuda; SLOW=1; TOGETHER=3
STEP="--batch 4 --frames 70,100 --repeats 7 --slow-repeats 3 --precisions float32,tf32,bf16"
MODELS="paper-convlstm,paper"; STAGES="--batch 4 --frames 70 --repeats 5"
LOADING="--trials 12 --turns 3 --batches 12 --threads 4"
STALL="--steps 40 --trials 12"; WAYS=""
SIMULATE="--mice 2 --neurons 400 --minutes 4"; STEPS=20
if [ "${1:-}" = --rehearse ]; then
  DEVICE=cpu; MODELS=tiny; SLOW=8; TOGETHER=1; TOTAL=$((8 * TOTAL))  # the limits are not for such machines
  STEP="--batch 2 --frames 12,16 --units 40 --size 36x64 --repeats 2 --precisions float32,bf16"
  STAGES="--batch 2 --frames 12 --units 40 --size 36x64 --repeats 2"
  LOADING="--neurons 60 --trials 3 --height 36 --width 64 --turns 1 --batches 2 --threads 2"
  STALL="--steps 20 --trials 3 --units 60 --size 36x64 --model tiny --device cpu"
  WAYS="--device cpu --model tiny --batch 2 --frames 12 --units 40"
  SIMULATE="--mice 2 --neurons 40 --minutes 2"; STEPS=20
fi
if [ -f "$SITE" ]; then
  site=${SITE_FOLDER:-/tmp/site}
  [ -d "$site" ] || { mkdir -p "$site" && tar -xJf "$SITE" -C "$site"; }
  say "unpacked $SITE"
  export PYTHONPATH=$site:$ROOT
else
  export PYTHONPATH=$ROOT
fi
AGAINST=""; [ -d "$FNN" ] && AGAINST="--fnn $FNN"
fmcortex() { "$PYTHON" -c 'from fmcortex.cli import main; main()' "$@"; }
wants() { [[ " $PARTS " == *" $1 "* ]]; }
# part NAME LIMIT COMMAND...: run it for LIMIT seconds at most, with its output in $OUT/NAME.log
part() {
  local name=$1 limit=$((SLOW * $2)) left=$((TOTAL - $(date +%s) + began)); shift 2
  wants "$name" || return 0
  [ $left -gt 10 ] || { say "== $name left out: no time"; return 0; }
  [ "$limit" -lt $left ] || limit=$left
  say "== $name"
  # To a file, not to a pipe: whatever a part leaves running cannot hold up the others.
  timeout --kill-after=5 "$limit" "$@" > "$OUT/$name.log" 2>&1 &
  local runs=$!
  tail -n +1 -s 0.2 -f --pid=$runs "$OUT/$name.log"
  wait $runs; say "== $name ended with $?"
}

# The shortest that can fail: imports, and one step of a tiny model.
smoke() {
  "$PYTHON" - <<'P'
import sys, time
for name in ("torch", "ray.train.torch", "deepspeed", "mlflow.pyfunc", "sqlalchemy", "zarr",
             "webdataset", "pydantic", "cluster.pretrain", "data_prep.job"):
    began = time.time()
    try:
        __import__(name)
        print(f"  {name}: {time.time() - began:.1f} s")
    except Exception as error:
        print(f"  {name}: FAILED: {type(error).__name__}: {error}")
print("Python", sys.version.split()[0])
P
  "$PYTHON" benchmarks/step.py $AGAINST --device $DEVICE --models tiny --units 40 --batch 2 \
    --frames 12 --size 36x64 --repeats 2 --precisions float32,bf16 --parts step,predict
}

# From simulated recordings to a registered model, by the public commands, with Ray and DeepSpeed.
ends() {
  cd "$WORK" || return 1
  local t="timeout --kill-after=5 $((60 * SLOW))"
  timed() { local s=$(date +%s%N) log=$(mktemp -p "$WORK"); "$@" > "$log" 2>&1; local rc=$?
    tail -"${LINES_TOLD:-1}" "$log" | cut -c1-300; cat "$log" >> all.log
    echo "  -> rc $rc, $((($(date +%s%N) - s) / 1000000)) ms: $LABEL"; return $rc; }
  python_fmcortex() { $t "$PYTHON" -c 'from fmcortex.cli import main; main()' "$@"; }
  LABEL=simulate timed python_fmcortex simulate rec $SIMULATE
  LABEL=prep timed python_fmcortex prep rec --to prepared
  local common="--config $ROOT/configs/demo.yaml --workers 1 --set data.url=prepared
    --set data.sessions=null --set tracking.uri=sqlite:///$WORK/mlflow.db
    --set training.epochs=2 --set training.steps_per_epoch=$((STEPS / 2))
    --set training.warmup_epochs=1 --set model.streams=2 --set cluster.max_failures=0
    --set tracking.validate_every=2 --set cluster.zero_stage=0"
  evaluations() {
    for run in cpu zero0 bf16; do
      LINES_TOLD=12 LABEL="evaluate $run" timed python_fmcortex evaluate $run --data prepared \
        --to $run.json --burnin 8
    done
    LABEL=register timed python_fmcortex register zero0 --name gpu-check --alias champion
    LINES_TOLD=3 LABEL=predict timed $t "$PYTHON" \
      "$ROOT/benchmarks/check_prediction.py" zero0 prepared gpu-check "sqlite:///$WORK/mlflow.db"
  }
  # Several at a time: nothing of them is timed.
  local running=0
  train() { local name=$1; shift
    (python_fmcortex pretrain $common --output $name "$@" > $name.log 2>&1
      echo "  -> rc $?: pretrain, $name: $(tail -1 $name.log | cut -c1-300)") &
    running=$((running + 1)); [ $((running % TOGETHER)) != 0 ] || wait; }
  train cpu --set training.device=cpu
  train zero0 --set training.device=$DEVICE
  train zero1 --set training.device=$DEVICE --set cluster.zero_stage=1
  train zero2 --set training.device=$DEVICE --set cluster.zero_stage=2
  train zero3 --set training.device=$DEVICE --set cluster.zero_stage=3
  train bf16 --set training.device=$DEVICE --set cluster.zero_stage=1 \
    --set training.precision=bf16
  wait
  evaluations > evaluations.log 2>&1 & local judging=$!
  [ $TOGETHER != 1 ] || wait $judging
  # Killed with all its processes after a checkpoint, and run again.
  local long="$common --set checkpoint.every=4 --set training.device=$DEVICE --output killed"
  setsid "$PYTHON" -c 'from fmcortex.cli import main; main()' pretrain $long > killed.log 2>&1 &
  local victim=$!
  for _ in $(seq 400); do
    ls killed/checkpoints/step*/manifest.json > /dev/null 2>&1 && break; sleep 0.1
  done
  kill -KILL -- -$victim; wait $victim 2> /dev/null
  echo "  killed with $(ls killed/checkpoints 2> /dev/null | tr '\n' ' ')"
  LABEL="pretrain again after the kill" timed python_fmcortex pretrain $long
  "$PYTHON" "$ROOT/benchmarks/compare_runs.py" zero0 cpu zero1 zero2 zero3 bf16 killed
  wait $judging; cat evaluations.log
  cp zero0/curves.html "$OUT/curves.html" 2> /dev/null
  cat [a-z]*.log | tail -c 400000 > "$OUT/ends_all.log"
}

loading() {
  "$PYTHON" benchmarks/stall.py $STALL
  timeout $((50 * SLOW)) "$PYTHON" benchmarks/data_loading.py $LOADING
}

export -f smoke ends loading
export PYTHON OUT ROOT WORK DEVICE SLOW TOGETHER AGAINST SIMULATE STEPS LOADING STALL
part smoke 60 bash -c smoke
part step 150 "$PYTHON" benchmarks/step.py $AGAINST --device $DEVICE --models $MODELS $STEP \
  --parts step,predict --json "$OUT/step.json"
part ends 170 bash -c ends
part profile 45 "$PYTHON" benchmarks/step.py --device $DEVICE --models $MODELS $STAGES \
  --precisions bf16 --parts stages,optimizer --profile
part ways 60 "$PYTHON" benchmarks/ways.py $WAYS
part loading 100 bash -c loading
say "all parts ended; tables again:"
for name in profile ways loading step; do
  [ -f "$OUT/$name.log" ] && grep -vE "^  (step|predict): " "$OUT/$name.log" | tail -45
done
# Few files come back from a borrowed machine.
for name in smoke step ends profile ways loading; do
  [ -f "$OUT/$name.log" ] && { echo "== $name"; cat "$OUT/$name.log"; rm "$OUT/$name.log"; }
done > "$OUT/gpu_check.log"
say "done"
