"""Tiny random networks of the mixture-of-experts families of transformers, a few thousand parameters each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SMALL: dict[str, Any] = {
    # sizes
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layers": 2,
    "num_decoder_layers": 2,
    "max_position_embeddings": 64,
    "intermediate_size": 32,
    "d_ff": 16,
    "ffn_hidden_size": 32,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    # attention
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "d_kv": 8,
    "kv_channels": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "sliding_window": 16,
    # experts
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "first_k_dense_replace": 0,
    "num_dense_layers": 0,
    "decoder_sparse_step": 1,
    "encoder_sparse_step": 1,
    "moe_layer_start_index": 0,
    "moe_layer_interval": 1,
    "expert_layer_period": 1,
    "expert_layer_offset": 0,
    "attn_layer_period": 1,
    "attn_layer_offset": 0,
    "mlp_only_layers": [],
    "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0,
    "output_router_logits": True,
    # tokens
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR_ATTENTION = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_hidden_layers": 8},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_expand": 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_moe_text": LINEAR_ATTENTION,
    "qwen3_next": LINEAR_ATTENTION,
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 8,
        "layer_types": ["full_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "per_layer_config": None,
    },
    "longcat_flash": {"zero_expert_num": 1, "expert_ffn_hidden_size": 16},
    "nllb-moe": {"expert_capacity": 64},
    "switch_transformers": {"expert_capacity": 64, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
}
SEQUENCE_TO_SEQUENCE = ("nllb-moe", "switch_transformers")
FAMILIES = [
    "afmoe",
    "aria_text",
    "axk1",
    "axk2",
    "bailing_hybrid",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "dots3_note_text",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "flint",
    "gemma4_text",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "hy_v4",
    "inkling2_text",
    "jamba",
    "jetmoe",
    "kolibri1",
    "laguna",
    "lara_mini",
    "lfm2_moe",
    "llama4_text",
    "longcat_flash",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl_text",
    "mixtral",
    "nemotron_h",
    "nllb-moe",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "solar_open",
    "switch_transformers",
]


def tiny(family: str, experts_implementation: str | None = None, **options: Any) -> nn.Module:
    """A random network of a family, in evaluation mode, float32."""
    config_class = CONFIG_MAPPING[family]
    default = config_class()
    known = {*default.to_dict(), *default.attribute_map}
    settings = {k: v for k, v in SMALL.items() if k in known} | SPECIAL.get(family, {}) | options
    if family in ("mimo_v2_flash", "mixtral", "qwen3_moe"):
        settings["num_key_value_heads"] = 2
    config = config_class(**settings)
    auto = AutoModelForSeq2SeqLM if family in SEQUENCE_TO_SEQUENCE else AutoModelForCausalLM
    extra = {} if experts_implementation is None else {"experts_implementation": experts_implementation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config, attn_implementation="eager", **extra).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def tokens(batch: int = 2, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs for :func:`tiny`."""
    return {"input_ids": torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(seed))}


def run(model: nn.Module, **options: Any) -> Any:
    """The outputs for :func:`tokens`."""
    inputs = tokens()
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(seed=1)["input_ids"]
    return model(**inputs, **options)
