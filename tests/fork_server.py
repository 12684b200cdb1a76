"""Run scripts in forks of one process that has imported everything: a start costs a moment instead of seconds.

    server = ForkServer()
    pids = server.start("basic_dpo_training", ["--max_steps", "4"], log="out.txt", errors="err.txt")
    codes = server.wait()
    server.close()

The server reads one request a line and answers with the process ids, and with the exit codes (minus the signal, as
subprocess has it) when all have ended. Nothing is computed before a fork, so no thread is lost by it.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "basic_dpo_training", "lora_dpo_training", "custom_dataset_dpo", "custom_loss_dpo", "dpo_evaluation"
)  # fmt: skip


class ForkServer:
    """A server in a process of its own, and one run at a time in forks of it."""

    def __init__(self):
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip

    def start(self, script: str, words: list[str], log: Path, errors: Path | None = None, **more) -> list[int]:
        """Start a script; returns the ids of its processes.

        log: where its output goes, and its errors too if they have no file of their own. more: cwd, processes and port,
        file_size (the most bytes that a file may have), encoding (of both outputs), ignored (names of signals), caches (where data
        sets are kept).
        """
        request = {"script": script, "words": [str(word) for word in words], "log": str(log)} | more
        request |= {"errors": errors and str(errors), "environment": dict(os.environ)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait(self) -> list[int]:
        """The exit codes of the run that was started."""
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a test has failed, and left its run behind
            os.killpg(self.process.pid, signal.SIGKILL)


def run_in_fork(request: dict, rank: int) -> int:
    """Start a script as process `rank`; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(request.get("cwd", PROJECT))
        os.environ |= request["environment"]
        log = _open(f"{request['log']}.{rank}" if rank else request["log"])
        os.dup2(log, 1)
        os.dup2(_open(request["errors"]) if request["errors"] else log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding=request.get("encoding"))
        if request["errors"]:
            sys.stderr = os.fdopen(2, "w", buffering=1, encoding=request.get("encoding"))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # a shell's background has the last one ignored
            signal.signal(number, signal.SIG_IGN if number.name in request.get("ignored", ()) else signal.SIG_DFL)
        if request.get("processes", 1) > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["processes"]),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"]),
            }  # fmt: skip
        if size := request.get("file_size"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        import datasets

        if caches := request.get("caches"):
            datasets.config.HF_DATASETS_CACHE = Path(caches)
        sys.argv = [f"{request['script']}.py", *request["words"]]
        import dpo_utils

        dpo_utils.run(sys.modules[request["script"]].main)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for name in (*SCRIPTS, "transformers.models.llama.modeling_llama", "peft", "matplotlib.pyplot"):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [run_in_fork(request, rank) for rank in range(request.get("processes", 1))]
        print(json.dumps(pids), flush=True)
        codes = []
        for pid in pids:
            status = os.waitpid(pid, 0)[1]
            codes.append(os.waitstatus_to_exitcode(status))
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
