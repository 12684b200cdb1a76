"""Tiny models and ways to run a script, shared by the tests. Nothing here needs a network."""

import atexit
import copy
import functools
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # several processes share the cores, and each number comes out the same in all
# Datasets are cached where no other run has put anything, by the processes that tests start as well.
_CACHE = tempfile.TemporaryDirectory(prefix="dpo-tests-", ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

import pytest
import torch
from fork_server import ForkServer
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# A shell ignores Ctrl-C for what it starts in the background, and nohup a terminal that closes; tests send both.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
PROJECT = Path(__file__).resolve().parent.parent
os.chdir(PROJECT)  # names like demo/model are meant from here
PATIENCE = 1800  # seconds: it ends what hangs, and never what is slow
# A short run of a training script, by flags a user has.
SHORT = ("--max_steps", 4, "--per_device_train_batch_size", 4, "--num_eval_prompts", 4, "--max_new_tokens", 8,
         "--eval_strategy", "no", "--logging_steps", 1)  # fmt: skip
# A short run of each script on the demo; what they are asked for besides the output folder.
SCRIPTS_ON_DEMO = {
    script: [*SHORT, *more]
    for script, more in {
        "basic_dpo_training": [],
        "lora_dpo_training": [],
        "custom_dataset_dpo": [],
        "custom_loss_dpo": ["--beside", "none"],
    }.items()
} | {
    "dpo_evaluation": "--models demo/model --reference demo/model --dataset_name demo --num_eval_prompts 2 --num_samples 1 "
    "--max_new_tokens 4".split()
}  # fmt: skip
# What metrics.json holds of every training.
CONTRACT = (
    "script model reference dataset beta loss_type seed max_length warnings trainable_parameters pairs_train pairs_eval train_seconds train_pairs_per_second "
    "peak_memory_bytes eval_loss reward_accuracy reward_margin chosen_logp_change rejected_logp_change kl"
).split()
TEXTS = ["the cat sat on the mat", "a dog ran over the hill", "User: Assistant: what is it? it is a cat, no, a dog."]

# For tests without a number of their own: 40 examples, the same each time. --hypothesis-profile=long tries 5,000 new ones.
for name, count in (("short", 40), ("long", 5_000)):
    settings.register_profile(
        name,
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=name == "short",
    )
settings.load_profile("short")


@pytest.fixture(scope="session")
def _base_tokenizer() -> PreTrainedTokenizerFast:
    """As many base models have it: an EOS token, no pad token, no chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")


@pytest.fixture
def base_tokenizer(_base_tokenizer) -> PreTrainedTokenizerFast:
    """A copy a test, which it may change."""
    return copy.deepcopy(_base_tokenizer)


@pytest.fixture(scope="session")
def base_model_folder(_base_tokenizer, tmp_path_factory) -> Path:
    """Another architecture than the demo's, with another tokenizer, saved to disk."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(_base_tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(folder)
    _base_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A random Llama of 50 tokens, with weights large enough for its log-probs to differ."""
    return make_llama()


def make_llama(seed: int = 0, **options) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    model = LlamaForCausalLM(LlamaConfig(**settings | options))
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model.eval()


def run_script(*words, cwd=PROJECT) -> subprocess.CompletedProcess:
    """Run a script as a user would, in a process of its own."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def run_forked(script, *words, cwd=PROJECT) -> subprocess.CompletedProcess:
    """The same in a fork of a process that has imported everything: what differs is the seconds that a start takes."""
    with tempfile.TemporaryDirectory(prefix="dpo-forked-") as folder:
        log, errors = Path(folder, "log"), Path(folder, "errors")
        server = fork_server()
        server.start(Path(script).stem, words, log, errors, cwd=str(cwd))
        [code] = server.wait()
        return subprocess.CompletedProcess([script, *words], code, log.read_text("utf-8"), errors.read_text("utf-8"))


@functools.cache
def fork_server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.close)
    return server


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a script's main in this process: call("basic_dpo_training", "--beta", "0") -> (exit code, stdout, stderr)."""
    import dpo_utils

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def _call(script: str, *words):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
        code = 0
        try:
            dpo_utils.run(importlib.import_module(script).main)
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        return code, output.out, output.err

    yield _call
    for number, handler in handlers.items():  # a training that fails leaves its own
        signal.signal(number, handler)


def spoil(path: Path, damage: str) -> None:
    """Do to a kept file what a disk or a person does: "flipped" (one bit), "cut", "empty", "garbage", "a folder"."""
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
        return
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"flipped": flipped, "cut": content[:-7], "empty": b"", "garbage": os.urandom(200)}[damage])


LENGTHS = [(7, 3, 5), (20, 1, 1), (4, 6, 2), (15, 1, 9)]  # prompt, chosen, rejected; the last is cut at 22


def batch_of(lengths, max_length=22):
    """Random pairs of these lengths as the trainer's collator makes them a batch, and their labels."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference  # takes seconds, which few tests need

    generator = torch.Generator().manual_seed(1)
    rows = [
        {
            name: torch.randint(3, 50, (length,), generator=generator).tolist()
            for name, length in zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)
        }
        for row in lengths
    ]
    batch = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(rows)
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    return batch, labels
