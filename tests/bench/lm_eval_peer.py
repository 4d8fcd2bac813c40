"""SmolLM2 on multiple-choice tasks, beside lm-evaluation-harness with its Hugging Face backend, on the same items.

    pip install '.[peers]'
    python -m tests.bench.lm_eval_peer [--tasks mmlu piqa openbookqa hellaswag] [--items 60] [--rounds 2]

Each side gets the same (context, continuation) texts and tokenizes them itself; both in float32, in processes of their
own, in turn. Items are the first of each task by a hash; of MMLU, whose items share their shots, the first hundred of a
subject, as they come in a full run.

Prints the largest difference of log likelihoods, on how many items the choices agree, items a second of both (without
loading and compiling), and the ratio beside the ideal one: tokens that the harness computes (each context with each
continuation; of one-token continuations each context once) over tokens that are different, which have to be computed
at least once.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from gpt4jax import files

WARM = 4  # items before the clock starts


def main() -> None:
    """Runs both sides, each as a process of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["mmlu", "piqa", "openbookqa", "hellaswag"])
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8], help="of the harness: its best counts")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side == "ours":
        return ours(flags)
    if flags.side == "theirs":
        return theirs(flags)
    with tempfile.TemporaryDirectory() as folder:
        _export(pathlib.Path(folder) / "weights")
        for _ in range(flags.rounds):
            for side in ("ours", "theirs"):
                subprocess.run(
                    [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--side", side, "--folder", folder], check=True
                )
        compare(flags.tasks, pathlib.Path(folder))
    return None


def _export(folder: pathlib.Path) -> None:
    from gpt4jax import weights

    loaded = weights.load("smollm2-135m-instruct")
    weights.save(folder, loaded.config, loaded.params, loaded.tokenizer)


def calls(name: str, items: int) -> list:
    """The calls of some items; the first WARM are asked before the clock starts."""
    from gpt4jax.evals import catalog, runner

    (task,) = catalog.build([name], {}, None, files.cache_dir())
    if name == "mmlu":
        subjects = dict.fromkeys(item.group for item in runner.sample(task.items, 400))
        wholes = [[item for item in task.items if item.group == subject] for subject in subjects]
        picked = [item for whole in wholes[: max(1, items // 100)] for item in whole[:100]]
    else:
        picked = runner.sample(task.items, items + WARM)
    return [call for item in picked for call in next(task.solve(item))]


def ours(flags) -> None:
    """Our log likelihoods and seconds, as `gpt4jax.evaluate` asks."""
    from gpt4jax import weights
    from gpt4jax.evals.asking import Asker
    from gpt4jax.inference import Engine

    loaded = weights.load(str(flags.folder / "weights"))
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=1, max_len=128, consume=True)
    asker = Asker(engine, None, 1)
    for name in flags.tasks:
        asked = calls(name, flags.items)
        list(asker.ask(asked))  # compiles
        engine._reader._held[0] = engine._reader._held[0][:0]  # forgets the prefix that it ends with
        tokens, started = engine.tokens_scored, time.perf_counter()
        found = dict(asker.ask(asked[WARM:]))
        seconds, tokens = time.perf_counter() - started, engine.tokens_scored - tokens
        keep(flags.folder, f"ours-{name}", seconds, [list(found[i].logprobs) for i in range(len(found))], read=tokens)


def theirs(flags) -> None:
    """The harness's, by its Hugging Face backend."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(flags.folder / "weights"), device="cpu", dtype="float32", batch_size=1)
    torch.set_num_threads(2)
    for name in flags.tasks:
        asked = calls(name, flags.items)

        def instances(some):
            pairs = [
                (call.header + "".join(call.shots) + call.context, choice) for call in some for choice in call.choices
            ]
            return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]

        best = None
        for size in flags.batch_sizes:
            lm.batch_size_per_gpu = size
            lm.loglikelihood(instances(asked[:WARM]), disable_tqdm=True)
            started = time.perf_counter()
            found = lm.loglikelihood(instances(asked[WARM:]), disable_tqdm=True)
            seconds = time.perf_counter() - started
            if best is None or seconds < best[0]:
                best = seconds, [logprob for logprob, _ in found], size
        flat = iter(best[1])
        nested = [[next(flat) for _ in call.choices] for call in asked[WARM:]]
        keep(flags.folder, f"theirs-{name}", best[0], nested, batch_size=best[2], **_tokens(lm, asked[WARM:]))


def _tokens(lm, asked) -> dict[str, int]:
    """Tokens that the harness computes, and different ones: after each beginning each token once."""
    computed, known, different = 0, set(), 0
    for call in asked:
        context = call.header + "".join(call.shots) + call.context
        pairs = [lm._encode_pair(context, choice) for choice in call.choices]
        rows = {tuple(before + after)[:-1] for before, after in pairs}
        computed += sum(map(len, rows))
        for row in rows:
            for end in range(len(row), 0, -1):
                if row[:end] in known:
                    break
                known.add(row[:end])
                different += 1
    return {"computed": computed, "different": different}


def keep(folder: pathlib.Path, name: str, seconds: float, logprobs: list, **more) -> None:
    """Appends a round."""
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({"seconds": seconds, "logprobs": logprobs, **more}) + "\n")


def compare(tasks: list[str], folder: pathlib.Path) -> None:
    """Prints what both sides say, and how fast."""
    for name in tasks:
        sides = {
            side: [json.loads(line) for line in (folder / f"{side}-{name}.jsonl").read_text().splitlines()]
            for side in ("ours", "theirs")
        }
        a, b = (sides[side][0]["logprobs"] for side in ("ours", "theirs"))
        difference = max(abs(x - y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))
        same = sum(one.index(max(one)) == two.index(max(two)) for one, two in zip(a, b, strict=True))
        seconds = {side: statistics.median(one["seconds"] for one in rounds) for side, rounds in sides.items()}
        peer, read = sides["theirs"][0], sides["ours"][0]["read"]
        print(
            f"{name}: {len(a)} items; log likelihoods differ by at most {difference:.1e}, the same choice on {same}; "
            f"{len(a) / seconds['ours']:.2f} and {len(a) / seconds['theirs']:.2f} items/s (harness: batches of "
            f"{peer['batch_size']}): {seconds['theirs'] / seconds['ours']:.2f}x, ideal "
            f"{peer['computed'] / peer['different']:.2f}x; tokens computed {read} and {peer['computed']}, different "
            f"{peer['different']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
