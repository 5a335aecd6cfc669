#!/bin/bash
# Runs one pgjax command under Open MPI; pgjax reads from mpirun's variables which rank it is.
#
#   mpirun -n 2 --bind-to none launch/mpi.sh -m pgjax.train --config=... --workdir=...
#   launch/mpi.sh --host node1:1,node2:1 -- -m pgjax.train --config=... --workdir=...
#
# The second form calls mpirun itself, with the options before `--`: then SIGTERM, SIGINT and SIGHUP
# save and stop the run with status 75. mpirun alone passes only SIGUSR1 and SIGUSR2 on (they save, too);
# after a SIGTERM it leaves its ranks one second, and the run resumes from its last checkpoint.
#
# Edit: COMMAND, if the command is not written after the file's name. PYTHON names the interpreter.
# One rank a host takes all its GPUs; several share them. --bind-to none: else a rank has one core.
COMMAND=(-m pgjax.train --config=configs/chartqa.py:size=3b --workdir=/shared/chartqa)

if [ -z "${OMPI_COMM_WORLD_RANK:-}" ]; then
  options=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1") && shift; done
  follow=()  # If this script is killed, its mpirun gets SIGUSR1.
  command -v setpriv > /dev/null && follow=(setpriv --pdeathsig USR1)
  setsid "${follow[@]}" mpirun --bind-to none "${options[@]}" "$0" "${@:2}" &
  trap 'kill -USR1 $!' TERM INT HUP USR1 USR2
  wait $!
  code=$?
  while [ $code -gt 128 ] && kill -0 $! 2>/dev/null; do  # It was the signal that ended `wait`.
    wait $!
    code=$?
  done
  exit $code
fi

cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
[ $# -gt 0 ] && COMMAND=("$@")
exec "$PYTHON" -u "${COMMAND[@]}"
