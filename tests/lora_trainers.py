"""Small trainings with an adapter, shared by the tests of several rooms."""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig

from dpo_utils import load_model, load_tokenizer
from machinery.training.shared_prompt import SharedPromptDPOTrainer

PAIRS = [
    {"prompt": f"what is it? {n}", "chosen": "a cat, no, a dog.", "rejected": "the mat" + " over" * n}
    for n in range(1, 9)
]


LORA = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer_for(folder, tmp_path, model=None, peft_config=LORA, kind=SharedPromptDPOTrainer, ref_model=None, **options):
    model = model or load_model(str(folder))[0]
    settings = dict(output_dir=str(tmp_path / "t"), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
                    gradient_checkpointing=False, per_device_train_batch_size=4, logging_steps=1, save_strategy="no",
                    learning_rate=1e-2, max_steps=2)  # fmt: skip
    return kind(
        model,
        ref_model=ref_model,
        args=DPOConfig(**settings | options),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=load_tokenizer(str(folder)),
        peft_config=peft_config,
    )


def sft_adapter(folder, tmp_path, name="sft"):
    """An adapter that does something, as supervised training leaves it."""
    torch.manual_seed(3)
    model = get_peft_model(load_model(str(folder))[0], LORA)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(tmp_path / name)
    return tmp_path / name


def losses(trainer):
    trainer.train()
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
