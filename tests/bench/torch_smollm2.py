"""SmolLM2 in `transformers`: the peer of tests/bench/inference.py, which starts it. Reads a task on stdin, as JSON.

{"gguf": PATH, "prompts": [[ids]], "max_tokens": N, "repeats": K} -> {"tokens": [[ids]], "seconds": [[...]], "gib": X}

All prompts are one batch and have one length; the i-th list of `seconds` is of that many new tokens: 1 and
`max_tokens`. Float32, `model.generate` as it comes: its own key-value cache and attention, greedy, no early end.
"""

import json
import pathlib
import resource
import sys
import time

import torch
import transformers


def main() -> None:
    """Writes the answer to stdout."""
    task = json.load(sys.stdin)
    path = pathlib.Path(task["gguf"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model = model.eval()
    ids = torch.tensor(task["prompts"])
    options = dict(attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=0)

    def generate(count: int) -> torch.Tensor:
        return model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)

    seconds: list[list[float]] = []
    tokens = generate(task["max_tokens"])
    for count in (1, task["max_tokens"]):
        seconds.append([])
        for _ in range(task["repeats"]):
            start = time.monotonic()
            generate(count)
            seconds[-1].append(time.monotonic() - start)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"tokens": tokens[:, ids.shape[1] :].tolist(), "seconds": seconds, "gib": gib}))


if __name__ == "__main__":
    main()
