"""Records a tiny CLIP vision tower and Idefics' perceiver resampler of the `transformers` library, for tests/model.

    pip install '.[peers]' && python -m tests.bench.record_vision

Random weights, every tensor drawn. CLIP's table of positions is made of one for rows and one for columns, as ours is.
Writes tests/fixtures/vision.npz: "clip/<name>", "perceiver/<name>", their inputs and their outputs.
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers import CLIPVisionConfig, CLIPVisionModel, IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

SIDE = 3  # patches


def drawn(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Draws all parameters anew, and gives them."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = "norm" in name or name.endswith("ln.weight")
            parameter.copy_(0.2 * torch.randn_like(parameter) + (1 if scale and name.endswith("weight") else 0))
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


def clip() -> dict[str, np.ndarray]:
    """A vision tower, two images, and what it makes of them."""
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=4 * SIDE,
            patch_size=4, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    out = drawn(model)
    row, column = (0.2 * torch.randn(SIDE, 24) for _ in range(2))
    table = next(value for name, value in model.named_parameters() if name.endswith("position_embedding.weight"))
    with torch.no_grad():
        table[1:] = (row[:, None] + column).reshape(-1, 24)
        pixels = torch.randn(2, 3, 4 * SIDE, 4 * SIDE)
        found = model(pixels)
    out |= {"row": row.numpy(), "column": column.numpy(), "pixels": pixels.numpy()}
    return out | {"last": found.last_hidden_state.numpy(), "pooled": found.pooler_output.numpy()}


def perceiver() -> dict[str, np.ndarray]:
    """A resampler to four latents, two images' patches, and what it makes of them."""
    config = IdeficsConfig()
    config.perceiver_config.qk_layer_norms_perceiver = False
    config.vision_config.embed_dim = 24
    model = IdeficsPerceiverResampler(config, 24, 2, 3, 8, 4).eval()
    out = drawn(model)
    with torch.no_grad():
        context = torch.randn(2, 9, 24)
        return out | {"context": context.numpy(), "latents_out": model(context).numpy()}


def main() -> None:
    """Writes the fixture."""
    torch.manual_seed(0)
    out = {"version": np.array(transformers.__version__)}
    for name, make in (("clip", clip), ("perceiver", perceiver)):
        out |= {f"{name}/{key}": value for key, value in make().items()}
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "vision.npz"
    np.savez_compressed(path, **out)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
