#!/bin/bash
# launch/slurm.sbatch with a made-up srun and scontrol: signals reach the step, whose exit code is
# the script's own and decides whether the job is requeued.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"

# Runs until USR1, then ends with 75; with END set, ends at once with that code.
cat >"$work/bin/srun" <<'STEP'
#!/bin/bash
echo "$@" >>"$WORK/srun.log"
[ -n "${END:-}" ] && exit "$END"
trap 'sleep 0.2; exit 75' USR1
touch "$WORK/started"
for _ in $(seq 300); do sleep 0.1; done
STEP
cat >"$work/bin/scontrol" <<'REQUEUE'
#!/bin/sh
echo "$@" >>"$WORK/scontrol.log"
REQUEUE
chmod +x "$work/bin/srun" "$work/bin/scontrol"
export WORK=$work PATH="$work/bin:$PATH" SLURM_JOB_ID=17 SLURM_SUBMIT_DIR=/here
export SLURM_CPUS_PER_TASK=8
failures=0

expect() {  # what, expected, got
  [ "$2" = "$3" ] && return
  echo "$1: expected '$2', got '$3'"
  failures=$((failures + 1))
}
requeues() { cat "$work/scontrol.log" 2>/dev/null; }

for code in 0 2 65 74 93; do
  END=$code bash "$root/launch/slurm.sbatch" X.yaml >/dev/null
  expect "exit code" $code $?
  expect "requeued after $code" "" "$(requeues)"
done
expect "the step" "--mpi=pmix --cpus-per-task=8 /here/build/bin/sluice train X.yaml" \
  "$(tail -1 "$work/srun.log")"

bash "$root/launch/slurm.sbatch" X.yaml a=1 >/dev/null &
job=$!
for _ in $(seq 100); do [ -e "$work/started" ] && break; sleep 0.1; done
kill -USR1 $job
sleep 0.05
kill -USR1 $job # a second one on the way changes nothing
wait $job
expect "exit code after USR1" 75 $?
expect "requeued after USR1" "requeue 17" "$(requeues)"

rm "$work/scontrol.log"
END=76 bash "$root/launch/slurm.sbatch" X.yaml >/dev/null
expect "exit code" 76 $?
expect "requeued after 76" "requeue 17" "$(requeues)"
bash "$root/launch/slurm.sbatch" 2>/dev/null
expect "exit code without a config" 2 $?
[ $failures -eq 0 ]
