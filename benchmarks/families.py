"""Which families of models share rows, and do loss and gradient stay TRL's? Tiny models, made on the spot.

    python benchmarks/families.py                        # the 32 of the list, whole, with adapters, with a router loss
    python benchmarks/families.py --others               # and every other family of Transformers that can be built
    python benchmarks/families.py --only gemma2 mixtral  # some
    python benchmarks/families.py --show                 # what was measured then, once more

Each model has its family's own default configuration, with small numbers for its sizes: kinds of layers, windows, soft
caps, sinks, experts and scalings are those of the default. Windows and chunks are 24 tokens wide and the pairs longer,
so that a window counted wrong shows. One batch goes through TRL's trainer and through this project's, in float32 and in
training mode, with a reference of other weights; the loss is compared, and the largest difference of the gradient with
its largest entry. Writes benchmarks/results/families.json.
"""

import argparse
import copy
import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers
from peft import LoraConfig
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl import DPOConfig, DPOTrainer

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
from benchmarks.speed import made_up_pairs, word_tokenizer
from machinery.common.safe_text import first_line
from machinery.training.shared_prompt import SharedPromptDPOTrainer

RESULTS = PROJECT / "benchmarks" / "results" / "families.json"
# The decoders that people train today, one of each kind: dense, with windows, of experts, linear and hybrid.
FAMILIES = (
    "llama mistral ministral3 qwen2 qwen3 phi3 gemma2 gemma3_text gemma3n_text gemma4_text olmo2 olmo3 smollm3 granite "
    "cohere2 exaone4 glm4 seed_oss apertus starcoder2 mixtral qwen3_moe gpt_oss olmoe deepseek_v3 glm4_moe llama4_text "
    "phimoe qwen3_next qwen3_5_text falcon_h1 lfm2"
).split()
VOCABULARY = 500
PATIENCE = 120  # seconds for a family
MOST = 1e-5  # of the largest entry: how far a gradient may be off in float32
LARGEST = 30_000_000  # parameters; what is larger has a size that the table below does not name
# Small numbers for what only makes a model large, wherever a configuration has a field of that name.
SIZES = dict(
    vocab_size=VOCABULARY, vocab_size_per_layer_input=VOCABULARY, hidden_size=64, d_model=64, n_embd=64, dff=96, ffn_dim=96,
    ffn_hidden_size=96, intermediate_size=96, intermediate_size_mlp=96, block_ff_dim=96, moe_intermediate_size=48,
    shared_expert_intermediate_size=48, shared_intermediate_size=48, hidden_size_per_layer_input=16, num_hidden_layers=6,
    num_layers=6, n_layer=6, n_layers=6, num_attention_heads=4, num_heads=4, n_head=4, n_heads=4, attention_heads=4,
    num_key_value_heads=2, num_global_key_value_heads=2, head_dim=16, global_head_dim=16, num_experts=4,
    num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
    q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, laurel_rank=8,
    query_pre_attn_scalar=16, max_position_embeddings=512, n_positions=512, max_seq_len=512, num_kv_shared_layers=0,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
    mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1, mamba_dt_rank=8, state_size=8,
    mamba_expand=1, n_groups=1, chunk_size=16, lru_width=64, word_embed_proj_dim=64, sliding_window=24,
    attention_window_size=24, attention_chunk_size=24, window_size=24, rotary_dim=8, bos_token_id=0, eos_token_id=0,
    pad_token_id=0,
)  # fmt: skip
SWITCHES = ("window_size", "sliding_window", "attention_chunk_size", "chunk_size", "num_kv_shared_layers")  # 0 is off
# What follows from those sizes and stands in the configuration as a number or a list of its own.
OWN = {
    "deepseek_v2": dict(num_experts_per_tok=2),
    "falcon_mamba": dict(intermediate_size=128),
    "gemma3n_text": dict(
        num_hidden_layers=5, intermediate_size=[96] * 5, activation_sparsity_pattern=[0.95, *[0.0] * 4],
        layer_types=[*["sliding_attention"] * 4, "full_attention"],
    ),
    "gemma4_text": dict(global_head_dim=16),
    "gpt_neo": dict(attention_types=[[["global", "local"], 3]]),
    "hunyuan_v1_dense": dict(head_dim=16),
    "hunyuan_v1_moe": dict(head_dim=16),
    "lfm2": dict(layer_types=["conv", "conv", "full_attention"] * 2),  # as in LFM2; the default has no conv layer
    "llama4_text": dict(num_experts_per_tok=1),
    "mamba2": dict(num_heads=8, head_dim=16),
    "ministral": dict(head_dim=16),
    "nemotron": dict(head_dim=16),
    "phi3": dict(original_max_position_embeddings=512),
    "phimoe": dict(original_max_position_embeddings=512),
}  # fmt: skip


def main() -> None:
    """Measure every family and every way of training it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="FAMILY")
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.show:
        names = options.only or [*FAMILIES, *(other_families() if options.others else ())]
        quiet()
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"more than {PATIENCE} seconds")))
        results = {}
        for name in tqdm(names):
            signal.alarm(PATIENCE)
            results[name] = measure(name)
        signal.alarm(0)
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    show(json.loads(options.out.read_text()))


def other_families() -> list[str]:
    """Causal language models of Transformers that are not in the list, encoders left out."""
    names = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FAMILIES))
    fields = {name: {field.name for field in dataclasses.fields(CONFIG_MAPPING[name])} for name in names}
    return [name for name in names if "is_decoder" not in fields[name]]  # which only families of encoders say


def tiny_config(family: str):
    """The default configuration of a family with small sizes. Fields that are off in the default stay off."""
    return tiny_part(CONFIG_MAPPING[family], OWN.get(family, {}))


def tiny_part(kind: type, own: dict):
    """A configuration, or one of the parts that a multimodal one is made of."""
    default = vars(kind())  # as they are kept: some may only be asked for layer by layer
    fields = {field.name: default.get(field.name) for field in dataclasses.fields(kind)}
    small = {name: 0.0 for name, value in fields.items() if "drop" in name and isinstance(value, float)}
    for name, size in SIZES.items():
        if name in fields and (
            name.endswith("token_id") or fields[name] or (fields[name] is not None and name not in SWITCHES)
        ):
            small[name] = size
    if fields.get("kv_lora_rank"):  # keys and values of latent attention have no groups
        small["num_key_value_heads"] = SIZES["num_attention_heads"]
    for name in kind.sub_configs:
        part = type(default.get(name))
        if name in fields and dataclasses.is_dataclass(part):
            small[name] = tiny_part(part, OWN.get(part.model_type, {}))
    return kind(**small | own)


def tiny_model(config):
    """A random model with weights large enough that what a layer sees decides what it predicts."""
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters with small sizes: more than a try is worth")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "conv" not in name and "A_log" not in name:
                weight.normal_(0, 0.1, generator=generator)
    return model


def measure(family: str) -> dict:
    """How one family trains, by way of training; {"not built": why} where there is no tiny model of it."""
    try:
        model = tiny_model(tiny_config(family))
    except Exception as error:
        return {"not built": first_line(error)}
    has_router = hasattr(model.config.get_text_config(), "output_router_logits")
    ways = {"full": dict(coefficient=0.0 if has_router else None)}
    ways["lora"] = ways["full"] | dict(lora=True)
    if has_router:
        ways["router loss"] = dict(coefficient=0.01)
    return {"class": type(model).__name__} | {way: compare(model, **settings) for way, settings in ways.items()}


def compare(model, coefficient: float | None, lora: bool = False) -> dict:
    """One batch through both trainers: rows, why, and how far loss and gradient are apart; or the error of either."""
    results = []
    for trainer_class in (DPOTrainer, SharedPromptDPOTrainer):
        try:
            results.append(one_step(trainer_class, copy.deepcopy(model), coefficient, lora))
        except Exception as error:
            results.append(error)
    stock, ours = results
    if isinstance(ours, Exception):
        return {"refused": first_line(ours), "kind": type(ours).__name__}
    if isinstance(stock, Exception):
        return {"rows": ours["rows"], "why": ours["why"], "TRL fails": first_line(stock)}
    gaps = [(a - b).abs().max().item() for a, b in zip(stock["gradients"], ours["gradients"], strict=True)]
    largest = max(gradient.abs().max().item() for gradient in stock["gradients"])
    result = {"rows": ours["rows"], "why": ours["why"], "loss": abs(stock["loss"] - ours["loss"])}
    result["gradient"] = max(gaps) / largest
    if result["gradient"] > MOST and model.dtype == torch.float32:  # another way to count, or rounding at a kink?
        result["in float64"] = compare(copy.deepcopy(model).double(), coefficient, lora)["gradient"]
    return result


def one_step(trainer_class, model, coefficient: float | None, lora: bool, **options) -> dict:
    """Loss and gradient of one batch of pairs, and how its rows were computed. options: of DPOConfig."""
    reference = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            ref_model=None if lora else reference,
            args=DPOConfig(**dict(
                output_dir=folder, use_cpu=True, bf16=False, per_device_train_batch_size=4, max_length=None,
                gradient_checkpointing=False, router_aux_loss_coef=coefficient, report_to="none",
                beta=0.1, disable_tqdm=True,
            ) | options),
            train_dataset=made_up_pairs(dict(prompt=60, completion=12), 4, VOCABULARY),
            processing_class=word_tokenizer(VOCABULARY),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        )  # fmt: skip
        if lora:
            with torch.no_grad():
                for name, weight in trainer.model.named_parameters():
                    if "lora_B" in name:
                        weight.normal_(0, 0.05, generator=generator)
        trainer.model.train()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        torch.manual_seed(3)
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    refusal = getattr(trainer, "shared_prompt_refusal", None)
    gradients = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
    return {"loss": loss.item(), "gradients": gradients, "rows": 2 if refusal else 1, "why": refusal}


def show(results: dict) -> None:
    """Print a line a family, and how many of the list share rows."""
    print("| family | rows | loss and gradient against TRL: whole | adapter | with a router loss | why |")
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        if "not built" in result:
            continue
        cells = [cell(result.get(way)) for way in ("full", "lora", "router loss")]
        way = result["full"]
        why = way.get("why") or way.get("refused") or ""
        print(f"| {name} | {way.get('rows', 'refused')} | {' | '.join(cells)} | {why} |")
    listed = [results[name] for name in FAMILIES if name in results]
    shared = sum(result.get("full", {}).get("rows") == 1 for result in listed)
    print(f"\n{shared} of the {len(listed)} of the list share rows (without a router loss).")
    if missing := {name: result["not built"] for name, result in results.items() if "not built" in result}:
        print(f"No tiny model of {len(missing)} others: {', '.join(missing)}.")


def cell(way: dict | None) -> str:
    """Differences in one way of training."""
    if way is None:
        return ""
    if "refused" in way:
        return "refused"
    if "TRL fails" in way:
        return "TRL fails"
    in_double = f" (float64: {way['in float64']:.0e})" if "in float64" in way else ""
    return f"{way['loss']:.0e}, {way['gradient']:.0e}{in_double}"


def quiet() -> None:
    """No warnings: every family has its own, and the table says what matters."""
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
