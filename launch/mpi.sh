#!/bin/bash
# One rank of a pgjax command under Open MPI; pgjax sees from mpirun's variables which one it is.
#
#   mpirun -n 2 --bind-to none launch/mpi.sh -m pgjax.train --config=... --workdir=...
#   mpirun --host node1:1,node2:1 --bind-to none launch/mpi.sh -m pgjax.train ...
#
# Edit: COMMAND, if the command is not written after the file's name. PYTHON names the interpreter.
# Start one rank a host, which takes all its GPUs; several ranks share them.
COMMAND=(-m pgjax.train --config=configs/chartqa.py:size=3b --workdir=/shared/chartqa)

cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
[ $# -gt 0 ] && COMMAND=("$@")
exec "$PYTHON" -u "${COMMAND[@]}"
