"""SmolLM2-135M through the engine beside `transformers`, in turn, on an otherwise idle machine.

    pip install '.[test,peers]' && python -m tests.bench.inference (speed | greedy | bits | types) [--peer_python PATH]

speed: tokens a second of prompts and of continuations, batch 1 and 8, float32; medians over rounds, and memory.
greedy: 20 prompts, 200 tokens each: the same text as `transformers`? Where not, how close were the best two?
types: weights in float32, bfloat16 and int8: nats a token of this Python's library, tokens a second, memory.
bits: a request alone, in any company, in any order, with kept beginnings, on 1 and 8 devices: the same bits?
    And how many programs are compiled over 200 requests after the warm-up (none, it should be).
"""

import argparse
import ast
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from gpt4jax import files, weights
from gpt4jax.inference.prepare import WEIGHTS
from gpt4jax.weights import source
from tests.runs import ROOT

MODEL = "smollm2-135m-instruct"
QUESTIONS = [
    "What is the capital of France?", "Why is the sky blue?", "Write a haiku about the sea.", "What is 17 times 3?",
    "Explain gravity to a child.", "Name three primary colours.", "How do I boil an egg?", "Who wrote Hamlet?",
    "What does a compiler do?", "Give me a word that rhymes with moon.",
]  # fmt: skip
TEXTS = [
    "def fibonacci(n):\n", "Once upon a time", "The three laws of thermodynamics are", "In 1969, the first",
    "import os\nimport sys\n\n\ndef main(", "Dear Sir or Madam,", "The recipe needs 200 g of flour,",
    "class Stack:\n    def __init__(self):\n", "Photosynthesis is the process by which", "A prime number is",
]  # fmt: skip
MODULES = (argparse, ast, json, pathlib, statistics, subprocess)  # whose sources are the text of `types`


def opened():
    """The model, and where its file lies."""
    return weights.load(MODEL), source.find(MODEL, files.cache_dir())


# glibc's huge pages, which gpt4jax.sample turns on; the peer gets them too.
ENVIRONMENT = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def peer(python: str, **task) -> dict:
    """One run of the peer."""
    command = [python, str(ROOT / "tests" / "bench" / "torch_smollm2.py")]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def prompts_of(tokenizer) -> list[list[int]]:
    """Ten chat questions and ten texts."""
    from gpt4jax.inference import chat

    template = chat.of_model(tokenizer.chat_template, tokenizer.roles, MODEL)
    asked = [chat.encode(template, tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS]
    return asked + [tokenizer.prompt(text) for text in TEXTS]


def greedy(options: argparse.Namespace) -> None:
    """Counts the places where the texts part; after each, ours goes on from theirs."""
    from gpt4jax.inference.engine import Engine
    from gpt4jax.inference.request import Request

    loaded, path = opened()
    prompts, count = prompts_of(loaded.tokenizer), 200
    theirs = [
        peer(options.peer_python, gguf=str(path), prompts=[prompt], max_tokens=count, repeats=0)["tokens"][0]
        for prompt in prompts
    ]
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, max_len=512, consume=True)
    flips, wrong, same = [], 0, 0
    for prompt, text in zip(prompts, theirs, strict=True):
        at, whole = 0, True
        while at < count:
            request = Request([*prompt, *text[:at]], count - at, temperature=0.0, stop_ids=frozenset(), top_logprobs=2)
            result = engine.generate([request])[0]
            differs = [i for i, (a, b) in enumerate(zip(result.tokens, text[at:], strict=True)) if a != b]
            if not differs:
                break
            (_, best), (_, second) = result.top_logprobs[differs[0]]
            flips.append(best - second)
            wrong += best - second >= 1e-3
            at, whole = at + differs[0] + 1, False
        same += whole
    print(f"{same} of {len(prompts)} texts of {count} tokens equal; {len(flips)} tokens differ, of which {wrong} where")
    print(f"the best two lie 1e-3 or more apart; their distances: {[float(f'{flip:.1e}') for flip in flips]}")
    raise SystemExit(wrong > 0)


def ours(rows: int, batch: int, prompt_len: int, max_tokens: int, repeats: int, max_len: int) -> dict:
    """In this process: seconds of 1 and of `max_tokens` new tokens a request; nothing is kept of prompts."""
    from gpt4jax.inference.engine import Engine
    from gpt4jax.inference.request import Request

    loaded, _ = opened()
    engine = Engine(loaded.config, loaded.params, rows=rows, max_len=max_len, prefix_bytes=0, consume=True)
    engine.warm_up()
    prompts = random_prompts(batch, prompt_len)
    seconds = []
    for count in (1, max_tokens):
        seconds.append([])
        for _ in range(repeats):
            start = time.monotonic()
            engine.generate(Request(prompt, count, temperature=0.0) for prompt in prompts)
            seconds[-1].append(time.monotonic() - start)
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def kind(dtype: str, rows: int, prompt_len: int, max_tokens: int, max_len: int) -> dict:
    """In this process: the same with weights of another type, and how well they predict text."""
    from gpt4jax.inference.engine import Engine
    from gpt4jax.inference.request import Request

    loaded, _ = opened()
    tok = loaded.tokenizer
    engine = Engine(
        loaded.config, loaded.params, rows=rows, max_len=max_len, weights=dtype, prefix_bytes=0, consume=True
    )
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(engine._pool.params)) / 2**20
    engine.warm_up()
    texts = [tok.encode(pathlib.Path(module.__file__).read_text())[:max_len] for module in MODULES]
    nats = -sum(score for score, _ in engine.loglikelihood((text[:1], text[1:]) for text in texts))
    seconds = []
    for count in (1, max_tokens):
        start = time.monotonic()
        engine.generate(Request(p, count, temperature=0.0) for p in random_prompts(rows, prompt_len))
        seconds.append(time.monotonic() - start)
    return {
        "nats": nats / sum(len(text) - 1 for text in texts), "mib": held, "first": rows * prompt_len / seconds[0],
        "next": rows * (max_tokens - 1) / (seconds[1] - seconds[0]),
    }  # fmt: skip


def types(options: argparse.Namespace) -> None:
    """Each type in a process of its own, in turn; medians over rounds."""
    results: dict[str, list[dict]] = {}
    for _ in range(options.rounds):
        for name in WEIGHTS:
            task = dict(dtype=name, rows=8, max_len=options.max_len)
            task |= dict(prompt_len=options.prompt_len, max_tokens=options.max_tokens)
            command = [sys.executable, "-m", "tests.bench.inference", "kind", "--task", json.dumps(task)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=ROOT)
            if done.returncode:
                raise SystemExit(done.stderr)
            results.setdefault(name, []).append(json.loads(done.stdout))
    for name, runs in results.items():
        nats, mib, first, rest = (
            statistics.median(run[key] for run in runs) for key in ("nats", "mib", "first", "next")
        )  # fmt: skip
        print(f"{name}: {nats:.4f} nats/token, {mib:.0f} MiB, prompts {first:,.0f}, continuations {rest:,.0f} tokens/s")


def random_prompts(batch: int, length: int) -> list[list[int]]:
    """The same for both."""
    return np.random.default_rng(0).integers(5, 40000, (batch, length)).tolist()


def speed(options: argparse.Namespace) -> None:
    """Alternates the two, each run a process of its own."""
    _, path = opened()
    shape = dict(prompt_len=options.prompt_len, max_tokens=options.max_tokens, repeats=3)
    for batch, rows in ((1, 1), (1, 8), (8, 8)):
        runs: dict[str, list[dict]] = {"gpt4jax": [], "transformers": []}
        for _ in range(options.rounds):
            task = dict(shape, rows=rows, batch=batch, max_len=options.max_len)
            command = [sys.executable, "-m", "tests.bench.inference", "ours", "--task", json.dumps(task)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=ROOT)
            if done.returncode:
                raise SystemExit(done.stderr)
            runs["gpt4jax"].append(json.loads(done.stdout))
            ids = random_prompts(batch, options.prompt_len)
            runs["transformers"].append(
                peer(options.peer_python, gguf=str(path), prompts=ids, max_tokens=options.max_tokens, repeats=3)
            )
        figures = {}
        for name, results in runs.items():
            first = statistics.median(statistics.median(r["seconds"][0]) for r in results)
            whole = statistics.median(statistics.median(r["seconds"][1]) for r in results)
            figures[name] = (
                batch * options.prompt_len / first, batch * (options.max_tokens - 1) / (whole - first),
                statistics.median(r["gib"] for r in results),
            )  # fmt: skip
        (a, b, c), (x, y, z) = figures["gpt4jax"], figures["transformers"]
        print(
            f"batch {batch} in a block of {rows}: prompts {a:,.0f} and {x:,.0f} tokens/s ({a / x:.2f}x), "
            f"continuations {b:,.1f} and {y:,.1f} tokens/s ({b / y:.2f}x), peak memory {c:.2f} and {z:.2f} GiB",
            flush=True,
        )


def requests_of(tokenizer, count: int, max_tokens: int) -> list:
    """Mixed lengths and settings; many begin alike."""
    from gpt4jax.inference.request import Request

    rng = np.random.default_rng(0)
    stdlib = tokenizer.encode(pathlib.Path(json.__file__).read_text())
    requests = []
    for i in range(count):
        start = 0 if i % 2 else int(rng.integers(0, 1000))
        prompt = stdlib[start : start + int(rng.integers(1, 400))]
        settings = [dict(temperature=0.0), dict(temperature=0.8, top_p=0.9), dict(top_k=40), dict(min_p=0.05)][i % 4]
        requests.append(Request(prompt, int(rng.integers(1, max_tokens)), seed=i, top_logprobs=2, **settings))
    return requests


def bits(options: argparse.Namespace) -> None:
    """Compares tokens and log probabilities to the last bit."""
    from gpt4jax.inference.engine import Engine
    from gpt4jax.parallel.mesh import make_mesh

    jax.config.update("jax_num_cpu_devices", 8)
    loaded, _ = opened()
    requests = requests_of(loaded.tokenizer, options.requests, 24)

    def same(ours, theirs) -> str:
        told = [[(r.tokens, r.logprobs, r.top_logprobs) for r in results] for results in (ours, theirs)]
        return f"{sum(a == b for a, b in zip(*told, strict=True))} of {len(ours)} the same bits"

    make = lambda **more: Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, max_len=512, **more)  # noqa: E731
    engine = make()
    engine.warm_up()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    together = engine.generate(requests)
    print(f"{len(requests)} requests of mixed lengths: {len(compiled)} programs compiled", flush=True)
    print("the other way round, beginnings kept:", same(together, engine.generate(requests[::-1])[::-1]), flush=True)
    few = requests[:: max(1, len(requests) // 24)]
    some = [together[requests.index(request)] for request in few]
    print("alone, beginnings kept:", same(some, [engine.generate([request])[0] for request in few]), flush=True)
    del engine
    cold = make(prefix_bytes=0)
    print("alone, nothing kept:", same(some, [cold.generate([request])[0] for request in few]), flush=True)
    del cold
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    print("on 8 devices:", same(some, make(mesh=mesh).generate(few)), flush=True)


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["speed", "greedy", "bits", "types", "ours", "kind"])
    parser.add_argument("--peer_python", default=sys.executable, help="a Python that has torch and transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt_len", type=int, default=128)
    parser.add_argument("--max_tokens", type=int, default=65)
    parser.add_argument("--max_len", type=int, default=512)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--task", type=json.loads, help="of `ours` and `kind`, which `speed` and `types` start")
    options = parser.parse_args()
    if options.task is not None:
        print(json.dumps({"ours": ours, "kind": kind}[options.part](**options.task)))
    else:
        {"speed": speed, "greedy": greedy, "bits": bits, "types": types}[options.part](options)


if __name__ == "__main__":
    main()
