"""Records weights and logits of tiny models of the `transformers` library, for tests/model and tests/weights.

    pip install '.[peers]' && python -m tests.bench.record_transformers

Random weights: every tensor is drawn, biases and norm scales too, so that one in the wrong place shows.
Writes tests/fixtures/transformers.npz: "<shape>/<name in Hugging Face's layout>", "<shape>/tokens", "<shape>/logits",
and "<shape>/config", the config.json that transformers saves.
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SMALL = dict(vocab_size=61)
LLAMA = dict(
    hidden_size=24, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    rope_theta=1e4, max_position_embeddings=24, attn_implementation="eager",
)  # fmt: skip
LINEAR = dict(rope_type="linear", factor=3.0)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=160, beta_fast=16.0)


def llama(head_dim=6, tied=False, scaling=None):
    """A maker of a Llama model."""
    rope = dict(rope_parameters=dict(scaling, rope_theta=1e4)) if scaling else {}
    config = LlamaConfig(**SMALL, **LLAMA, head_dim=head_dim, rms_norm_eps=1e-5, tie_word_embeddings=tied, **rope)
    return lambda: LlamaForCausalLM(config)


MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**SMALL, n_positions=24, n_embd=24, n_layer=2, n_head=3, n_inner=80, attn_implementation="eager")
    ),
    "llama": llama(),
    "llama_linear": llama(16, tied=True, scaling=LINEAR),
    "llama_llama3": llama(16, tied=True, scaling=LLAMA3),
    "llama_yarn": llama(16, tied=True, scaling=YARN),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, **LLAMA, head_dim=6, sliding_window=5)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **SMALL, **LLAMA, head_dim=6, use_sliding_window=True, sliding_window=7, max_window_layers=1,
            tie_word_embeddings=True,
        )
    ),
}  # fmt: skip


def main() -> None:
    """Writes the fixture."""
    out = {"version": np.array(transformers.__version__)}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                norm = "norm" in parameter_name or ".ln_" in parameter_name
                parameter.copy_(0.2 * torch.randn_like(parameter) + (1 if norm and parameter_name[-1] == "t" else 0))
            tokens = torch.randint(0, 61, (2, 24))
            logits = model(tokens).logits
        out |= {f"{name}/{key}": value.detach().numpy() for key, value in model.named_parameters()}
        model.config.architectures = [type(model).__name__]  # as save_pretrained does
        out[f"{name}/config"] = np.array(model.config.to_json_string())
        out |= {f"{name}/tokens": tokens.numpy(), f"{name}/logits": logits.numpy()}
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "transformers.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **out)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
