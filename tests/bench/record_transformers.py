"""Records weights and logits of tiny GPT-2 and Llama models of the `transformers` library, for tests/model.

    pip install '.[peers]' && python -m tests.bench.record_transformers

Random weights: every tensor is drawn, biases and norm scales too, so that one in the wrong place shows.
Writes tests/fixtures/transformers.npz: "<shape>/<name in Hugging Face's layout>", "<shape>/tokens", "<shape>/logits".
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SMALL = dict(vocab_size=61)
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**SMALL, n_positions=24, n_embd=24, n_layer=2, n_head=3, n_inner=80, attn_implementation="eager")
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SMALL, hidden_size=24, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=False,
            max_position_embeddings=24, attn_implementation="eager",
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
        out |= {f"{name}/tokens": tokens.numpy(), f"{name}/logits": logits.numpy()}
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "transformers.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **out)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
