"""A `python` whose commands start by fork from a process that has imported the libraries.

Each command takes many seconds to import torch and the like, and READMEs hold many commands. A
command still imports the code of its folder itself. Its arguments, folder, standard streams and
exit code are those of any `python`.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

CLIENT = """\
#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code = int(server.recv(8))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
BY_SHELL = {"OLDPWD", "PWD", "SHLVL", "_"}  # the variables that a shell changes itself


@contextmanager
def forked_python(
    folder: Path, libraries: Sequence[str], environment: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Write a `python` into a folder; yield the environment with it first on the path.

    Libraries read their variables when they are imported. A command may change only those of this
    project, which begin with T2V_; it ends with an error if it changes another.
    """
    address, python = folder / "server", folder / "python"
    python.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    python.chmod(0o755)
    environment = {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), *libraries],
            env=environment, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield environment
    finally:
        server.kill()
        server.wait()


def next_command(listener: socket.socket, own: Mapping[str, str]) -> list[str]:
    """Serve; return, in a fork, the arguments of a command whose place that fork has taken.

    Args:
        own: the environment in which the libraries were imported.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    connection, _ = listener.accept()
    while os.fork():
        connection.close()
        connection, _ = listener.accept()
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile() as file:
        arguments, folder, environment = json.load(file)
    if command := os.fork():
        _, status = os.waitpid(command, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    atexit.register(gc.unfreeze)
    for stream, given in enumerate(streams):
        os.dup2(given, stream)
        os.close(given)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)
    changed = {name for name in {*own, *environment} if own.get(name) != environment.get(name)}
    if refused := sorted(name for name in changed - BY_SHELL if not name.startswith("T2V_")):
        sys.exit(f"This python cannot change the variables {', '.join(refused)}.")
    os.chdir(folder)
    for name in changed:  # libraries set others, which stay
        os.environ.pop(name, None)
    os.environ.update({name: environment[name] for name in changed & environment.keys()})
    return arguments


def run(arguments: list[str]) -> None:
    """Run what `python` runs for these arguments, in this process."""
    kind, *rest = arguments
    if kind == "-m":
        sys.argv[:] = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind in ("-c", "-"):
        source, *rest = rest if kind == "-c" else (sys.stdin.read(), *rest)
        sys.argv[:] = [kind, *rest]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(source, "<string>", "exec"), main.__dict__)
    elif kind.startswith("-"):
        sys.exit(f"This python does not know the option {kind}.")
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    started = dict(os.environ)
    sys.path.pop(0)  # the folder of this file
    for library in sys.argv[2:]:
        import_module(library)
    gc.freeze()  # else each command would copy the memory of the libraries to look for garbage
    run(next_command(socket.socket(fileno=int(sys.argv[1])), started))
