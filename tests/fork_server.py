"""Run training scripts in forks of one process that has imported everything: a start costs a moment instead of seconds.

It reads one request a line, {"script", "words", "log", "processes", "file_size"}, answers with the process ids, and
with the exit codes (minus the signal, as subprocess has it) when all have ended. Nothing is computed before a fork, so
no thread is lost by it.
"""

import importlib
import json
import os
import resource
import sys
import traceback

import torch

SCRIPTS = ("basic_dpo_training", "lora_dpo_training", "custom_dataset_dpo", "custom_loss_dpo")


def run_in_fork(request: dict, rank: int) -> int:
    """Start a script as process `rank`; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(f"{request['log']}.{rank}" if rank else request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        if request["processes"] > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["processes"]),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"]),
            }  # fmt: skip
        if request["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
        sys.argv = [f"{request['script']}.py", *request["words"]]
        import dpo_utils

        dpo_utils.run(sys.modules[request["script"]].main)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for name in (*SCRIPTS, "transformers.models.llama.modeling_llama", "peft", "matplotlib.pyplot"):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [run_in_fork(request, rank) for rank in range(request["processes"])]
        print(json.dumps(pids), flush=True)
        codes = []
        for pid in pids:
            status = os.waitpid(pid, 0)[1]
            codes.append(os.waitstatus_to_exitcode(status))
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
