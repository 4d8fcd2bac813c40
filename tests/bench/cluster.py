"""Four real processes with two devices each beside one with eight, and other device counts on the way.

    python -m tests.bench.cluster [--elastic]

First every row of every batch, read by each process for its own devices: their sha256, by step and row, must be those
of one process. Then whole runs of `gpt4jax.train`: losses of all steps and evaluations must agree to 1e-5. With
`--elastic`: a run on 8, 6, 4 and 8 devices in turn (told to stop after a quarter of its steps each time) beside one
that stays on 8, in fsdp and data shards; then a checkpoint of 4 x 2 on meshes 1 x 8, 8 x 1 and on one device.
"""

import argparse
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from gpt4jax.training import metrics
from tests.runs import ROOT, TINY, command, environment, run, write_corpus

STEPS, ROWS = 24, 24  # 24 rows divide over 8, 6 and 4 devices


def flags(home: pathlib.Path, workdir: pathlib.Path, *overrides: str) -> list[object]:
    """The tiny run with rows for any of the device counts."""
    return [
        "--config", TINY, "--workdir", workdir, f"--config.data.dataset=folder:{home / 'corpus'}",
        f"--config.num_steps={STEPS}", f"--config.batch_size={ROWS}", "--config.optimizer.micro_batches=1",
        "--config.eval.num_rows=48", *overrides,
    ]  # fmt: skip


def digests(argv: list[str]) -> int:
    """One of the processes: prints the digest of each of its rows of the first steps."""
    import numpy as np

    from gpt4jax import config as configuration
    from gpt4jax import files
    from gpt4jax.data import loader, text
    from gpt4jax.parallel import mesh as meshes
    from gpt4jax.parallel import partition, processes

    config = configuration.load(str(TINY), argv)
    with tempfile.TemporaryDirectory() as folder:
        processes.join(config.mesh, pathlib.Path(folder), print)
    mesh = meshes.make_mesh(config.mesh)
    data = text.load(config.data, config.model.vocab_size, files.cache_dir(), lambda line: None)
    sharding = partition.batch_sharding(mesh)
    batches = loader.train_batches(
        data.of("train"), seed=config.seed, batch_size=config.batch_size, first_step=0, num_steps=STEPS,
        sharding=sharding, prefetch=2,
    )  # fmt: skip
    for step, batch in enumerate(batches):
        for shard in batch["tokens"].addressable_shards:
            for row, tokens in zip(range(config.batch_size)[shard.index[0]], np.asarray(shard.data), strict=True):
                print(f"row {step} {row} {hashlib.sha256(tokens.tobytes()).hexdigest()[:16]}", flush=True)
    return 0


def launched(home: pathlib.Path, *words: object) -> subprocess.CompletedProcess:
    """A command as four processes with two devices each."""
    argv = command("parallel.launch", "--processes", 4, "--devices", 2, "--", *words)
    done = subprocess.run(argv, env=environment(home / "cache"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def rows_of(text: str) -> set[tuple[str, ...]]:
    """(step, row, digest) of what the processes have printed."""
    found = [line.partition("row ")[2].split() for line in text.splitlines() if "row " in line]
    unique = {tuple(each) for each in found}
    assert len(unique) == STEPS * ROWS, f"{len(unique)} rows of {STEPS * ROWS}"
    return unique


def lines(workdir: pathlib.Path, key: str) -> dict[int, float]:
    """A figure of metrics.jsonl by step."""
    return {line["step"]: line[key] for line in metrics.read(workdir) if key in line}


def furthest(ours: pathlib.Path, theirs: pathlib.Path) -> dict[str, float]:
    """The largest differences of losses and evaluations; each step must be there once."""
    out = {}
    for key in ("train/loss", "eval/heldout/loss"):
        a, b = lines(ours, key), lines(theirs, key)
        assert a.keys() == b.keys(), (sorted(a), sorted(b))
        out[key] = max(abs(a[step] - b[step]) for step in a)
    return out


def until(home: pathlib.Path, workdir: pathlib.Path, devices: int, step: int, *overrides: str) -> None:
    """Runs on so many devices, and tells the run to stop when it has said a step."""
    process = subprocess.Popen(
        command("train", *flags(home, workdir, *overrides)), env=environment(home / "cache", devices), cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith(f"step {step}/"):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 143


def elastic(home: pathlib.Path) -> None:
    """8 -> 6 -> 4 -> 8 devices, and one checkpoint on other meshes."""
    steady, moving = home / "steady", home / "moving"
    done = run("train", *flags(home, steady), cache=home / "cache", devices=8)
    assert done.returncode == 0, done.stderr
    for devices, step, fsdp in ((8, 6, 1), (6, 12, 2), (4, 18, 4)):
        until(home, moving, devices, step, f"--config.mesh.fsdp={fsdp}")
        saved = max(int(p.name) for p in (moving / "checkpoints").iterdir() if p.name.isdecimal())
        print(f"{devices} devices, fsdp {fsdp}: saved step {saved}", flush=True)
    done = run("train", *flags(home, moving, "--config.mesh.fsdp=8"), cache=home / "cache", devices=8)
    assert done.returncode == 0, done.stderr
    print("8 -> 6 -> 4 -> 8 devices beside 8: largest difference", json.dumps(furthest(moving, steady)), flush=True)
    first = home / "four_by_two"
    until(home, first, 8, 12, "--config.mesh.data=4", "--config.mesh.fsdp=2")
    step = max(int(p.name) for p in (first / "checkpoints").iterdir() if p.name.isdecimal())
    for data, fsdp in ((1, 8), (8, 1), (1, 1)):
        other = home / f"on_{data}_{fsdp}"
        subprocess.run(["cp", "-r", first, other], check=True)
        same = (f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}")
        done = run("train", *flags(home, other, *same), cache=home / "cache", devices=data * fsdp)
        assert done.returncode == 0 and f"resumed at step {step}" in done.stderr, done.stderr
        print(f"4 x 2 at step {step} on {data} x {fsdp}:", json.dumps(furthest(other, steady)), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--elastic", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        write_corpus(home / "corpus")
        if options.elastic:
            elastic(home)
            return 0
        words = ("tests.bench.cluster", f"data.dataset=folder:{home / 'corpus'}", f"batch_size={ROWS}")
        one = subprocess.run(
            [sys.executable, "-m", *words], env=environment(home / "cache", 8) | {"CLUSTER_ROWS": "1"}, cwd=ROOT,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        os.environ["CLUSTER_ROWS"] = "1"
        four = launched(home, sys.executable, "-m", *words)
        del os.environ["CLUSTER_ROWS"]
        assert rows_of(one.stdout) == rows_of(four.stdout)
        print(f"{STEPS} steps of {ROWS} rows: the same rows in the same order", flush=True)
        done = run("train", *flags(home, home / "one"), cache=home / "cache", devices=8)
        assert done.returncode == 0, done.stderr
        launched(home, *command("train", *flags(home, home / "four")))
        print("4 x 2 beside 1 x 8: largest difference", json.dumps(furthest(home / "four", home / "one")))
    return 0


if __name__ == "__main__":
    sys.exit(digests(sys.argv[1:]) if os.environ.get("CLUSTER_ROWS") else main())
