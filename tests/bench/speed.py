"""Tokens a second of the public train job beside the PyTorch peer, in turn, on an otherwise idle machine.

    pip install '.[peers]' && python -m tests.bench.speed --rounds 5 [--peer_python PATH]

Both train the same shape in float32 on the CPU, whole optimizer steps, ours with its data loader. The first
three steps of a run are left out; a run's figure is the median of the rest. Prints each round's figures, then
medians over the rounds. Peak memory is that of the whole process.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from gpt4jax.training import metrics
from tests.runs import ROOT, run, write_corpus


def ours(home: pathlib.Path, number: int, steps: int) -> dict[str, float]:
    """One run of gpt4jax.train."""
    workdir = home / f"run{number}"
    flags = ["--config", ROOT / "tests" / "configs" / "peer.py", "--workdir", workdir]
    flags += [f"--config.data.dataset=folder:{home / 'corpus'}", f"--config.num_steps={steps + 3}"]
    done = run("train", *flags, cache=home / "cache")
    assert done.returncode == 0, done.stderr
    lines = [line for line in metrics.read(workdir) if line["step"] > 3 and "perf/tokens_per_second" in line]
    return {
        "tokens_per_second": statistics.median(line["perf/tokens_per_second"] for line in lines),
        "data_wait_fraction": statistics.median(line["perf/data_wait_fraction"] for line in lines),
        "peak_memory_gib": float(re.search(r"peak memory of the process ([\d.]+) GiB", done.stdout).group(1)),
    }


def theirs(python: str, steps: int, tunables: str | None) -> dict[str, float]:
    """One run of the peer, with its defaults or with the same allocator setting as ours."""
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": tunables} if tunables else {}
    command = [python, str(ROOT / "tests" / "bench" / "torch_gpt.py"), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def main() -> None:
    """Alternates the runs and prints the ratio of the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peer_python", default=sys.executable, help="a Python that has torch")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"gpt4jax": [], "torch": [], "torch, huge pages": []}
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        write_corpus(home / "corpus")
        for number in range(options.rounds):
            runs["gpt4jax"].append(ours(home, number, options.steps))
            runs["torch"].append(theirs(options.peer_python, options.steps, None))
            runs["torch, huge pages"].append(theirs(options.peer_python, options.steps, "glibc.malloc.hugetlb=1"))
            print(json.dumps({name: done[-1]["tokens_per_second"] for name, done in runs.items()}), flush=True)
    medians = {name: statistics.median(r["tokens_per_second"] for r in done) for name, done in runs.items()}
    for name, done in runs.items():
        memory = statistics.median(r["peak_memory_gib"] for r in done)
        ratio = medians["gpt4jax"] / medians[name]
        print(f"{name}: {medians[name]:,.0f} tokens/s, peak memory {memory:.2f} GiB; gpt4jax is {ratio:.2f}x")
    wait = statistics.median(r["data_wait_fraction"] for r in runs["gpt4jax"])
    print(f"gpt4jax waits for its data {wait:.2%} of a steady step")


if __name__ == "__main__":
    main()
