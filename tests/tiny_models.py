"""Small transformers models of random weights, and texts for them."""

import inspect

SMALL = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "pad_token_id": 0}
STYLES = {
    "Bert": SMALL,
    "Roberta": {**SMALL, "pad_token_id": 0},
    "GPT2": {
        "vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "scale_attn_by_inverse_layer_idx": True, "bos_token_id": 1, "eos_token_id": 1,
    },
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": None},
    "Qwen2": GROUPED,
}  # fmt: skip


def build(transformers, style, kind="Model", **changes):
    """A small model of random weights that are large enough for attention to be far from uniform."""
    import torch

    torch.manual_seed(0)
    config = getattr(transformers, f"{style}Config")(**{**STYLES.get(style, GROUPED), **changes})
    model = getattr(transformers, f"{style}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def text_inputs(torch, n=17, **more):
    ids = torch.randint(2, 50, (1, n), generator=torch.Generator().manual_seed(n))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def cache_name(model):
    """The argument of a model that takes the keys and values of earlier tokens."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before 5.24
