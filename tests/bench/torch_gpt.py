"""The PyTorch training step to measure against: a plain pre-norm GPT, one optimizer step at a time.

    pip install torch==2.13.0
    python torch_gpt.py --layers 6 --width 384 --heads 6 --context 256 --batch 8 --vocab 256 [--dtype bf16] [--compile]

Prints one JSON line: seconds a step (median), tokens a second, model TFLOP/s (6 N per token plus causal-halved attention).
Use it side by side, in turn with the other program, on a quiet machine: absolute times of these machines drift, ratios hold.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.token = nn.Embedding(a.vocab, a.width)
        self.position = nn.Embedding(a.context, a.width)
        self.blocks = nn.Sequential(*[Block(a.width, a.heads) for _ in range(a.layers)])
        self.norm = nn.LayerNorm(a.width)
        self.head = nn.Linear(a.width, a.vocab, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens, targets):
        x = self.norm(self.blocks(self.token(tokens) + self.position.weight[: tokens.shape[1]]))
        return F.cross_entropy(self.head(x).flatten(0, 1).float(), targets.flatten())


def peak_memory(device):
    """Bytes: of the GPU, or of the whole process on a CPU (Linux counts KiB)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    p = argparse.ArgumentParser()
    for name, default in dict(layers=6, width=384, heads=6, context=256, batch=8, vocab=256, steps=10).items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    p.add_argument("--compile", action="store_true")
    a = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = GPT(a).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    run = torch.compile(model) if a.compile else model
    rows = torch.randint(0, a.vocab, (a.batch, a.context + 1), device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=a.dtype == "bf16"):
            loss = run(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(3):
        step()
    times = []
    for _ in range(a.steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    seconds, tokens = statistics.median(times), a.batch * a.context
    n = sum(q.numel() for q in model.parameters()) - model.position.weight.numel()
    flops = tokens * (6 * n + 6 * a.layers * a.width * a.context)
    print(
        json.dumps(
            dict(
                peer="torch",
                version=torch.__version__,
                device=device,
                dtype=a.dtype,
                compile=a.compile,
                params=n,
                seconds_per_step=round(seconds, 4),
                tokens_per_second=round(tokens / seconds, 1),
                tflops=round(flops / seconds / 1e12, 4),
                peak_memory_gib=round(peak_memory(device) / 2**30, 3),
            )
        )
    )


if __name__ == "__main__":
    main()
