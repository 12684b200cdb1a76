"""Look at a model folder before anything is loaded from it, and say what is wrong with it in one sentence.

    check_model_folder("my_model")     # ValueError: "my_model holds pickled weights only ..."
    check_architecture(config)                    # ValueError: "it is BertForMaskedLM ..."

Weights are read from safetensors alone: a pickled file can run any code when it is loaded.
"""

from pathlib import Path

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def check_model_folder(name: str) -> None:
    """Accept hub names and folders with a model in safetensors. Raises ValueError for every other path."""
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ValueError(f"{name} is no model folder")
        return
    files = {file.name for file in path.iterdir()}
    if "config.json" not in files:
        if "adapter_config.json" in files:
            raise ValueError(f"{name} holds an adapter without its base model; lora_dpo_training.py takes adapters")
        raise ValueError(f"{name} holds no model: there is no config.json in it")
    if not any(file.endswith(".safetensors") for file in files):
        if any(file.endswith((".bin", ".pt", ".pth")) for file in files):
            raise ValueError(
                f"{name} holds pickled weights only, and loading those can run any code. Convert them to safetensors "
                "where you trust them: load them, then save_pretrained"
            )
        raise ValueError(f"{name} holds no weights: there is no .safetensors file in it")


def check_architecture(config: PreTrainedConfig) -> None:
    """Accept causal language models, also those of remote code. Raises ValueError that names the architecture."""
    architecture = (config.architectures or ["a model that does not say what it is"])[0]
    is_remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and not is_remote:
        raise ValueError(f"it is {architecture}, which is not a causal language model")
