"""The training job through its command line: repeats, resumes bit for bit, and refuses in words."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from gpt4jax.training import goodput, metrics
from tests.runs import ROOT, TINY, assert_same_state, command, environment, final_state, here, run, write_corpus

STEPS = 24


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A cache and a corpus that all runs here share."""
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "corpus")
    return home


def flags(home, workdir, *overrides):
    return ["--config", TINY, "--workdir", workdir, f"--config.data.dataset=folder:{home / 'corpus'}", *overrides]


def train(home, workdir, *overrides, start=run):
    return start("train", *flags(home, workdir, *overrides), cache=home / "cache")


@pytest.fixture(scope="session")
def undisturbed(home):
    done = train(home, home / "undisturbed", "--profile")
    assert done.returncode == 0, done.stderr
    return done, home / "undisturbed"


def losses(workdir):
    return {line["step"]: line["train/loss"] for line in metrics.read(workdir) if "train/loss" in line}


def evaluations(workdir):
    return {line["step"]: line["eval/heldout/loss"] for line in metrics.read(workdir) if "eval/heldout/loss" in line}


def test_a_run_leaves_what_it_promises(undisturbed):
    done, workdir = undisturbed
    assert "held-out" in done.stdout and "--- a sample" in done.stdout and "peak memory" in done.stdout
    assert "34,976 parameters on 1 cpu (data 1 x fsdp 1 x tensor 1 x context 1)" in done.stderr
    assert "a step: 4 rows of 64 = 256 tokens, 2 rows a shard in each of 2 micro-batches" in done.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["embed_dim"] == 32 and config["num_steps"] == STEPS
    facts = json.loads((workdir / "data.json").read_text())
    assert len(facts["fingerprint"]) == 64 and facts["train"]["pairs"] > 10_000
    assert sorted(losses(workdir)) == list(range(1, STEPS + 1))
    assert sorted(evaluations(workdir)) == [8, 16, 24]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["18", "24"]
    assert list(workdir.glob("events.out.tfevents.*"))
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    assert "a device holds, MiB: parameters 0.1, optimizer 0.3" in done.stderr
    assert re.search(r"activations and gradients: \d+\.\d MiB a device", done.stderr)
    found = goodput.account(goodput.read(workdir))
    assert found.starts == 1 and found.seconds["lost"] == found.seconds["down"] == 0
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=1e-3) and found.seconds["step"] > 0
    line = metrics.read(workdir)[-2]
    assert {"train/loss", "train/bits_per_byte", "learning/grad_norm", "perf/tokens_per_second"} < line.keys()
    assert evaluations(workdir)[24] < evaluations(workdir)[8] < losses(workdir)[1]


def test_a_killed_run_resumes_bit_for_bit(home, undisturbed, monkeypatch):
    """Ctrl-C, SIGTERM and SIGKILL one after the other, each to a run that goes on from where the one before ended."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")  # as users have it: each run compiles for itself
    workdir = home / "killed"
    for how, at in ((signal.SIGINT, 3), (signal.SIGTERM, 10), (signal.SIGKILL, 19)):
        process = subprocess.Popen(
            command("train", *flags(home, workdir)), env=environment(home / "cache"), stderr=subprocess.PIPE, text=True
        )
        for line in process.stderr:
            if line.startswith(f"step {at}/"):
                process.send_signal(how)
                break
        rest = process.stderr.read()
        status = process.wait(timeout=120)
        if how is signal.SIGKILL:
            assert status == -9
        else:
            assert status == 128 + how and f"{how.name}: saved step" in rest and "the same command resumes" in rest
            assert at <= max(losses(workdir)) < at + 7
    resumed = train(home, workdir)
    assert resumed.returncode == 0 and "resumed at step" in resumed.stderr, resumed.stderr
    assert_same_state(final_state(workdir, STEPS), final_state(undisturbed[1], STEPS))
    assert losses(workdir) == losses(undisturbed[1])
    assert evaluations(workdir) == evaluations(undisturbed[1])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(home, undisturbed):
    for number, harm in enumerate((flip_a_bit, truncate)):
        workdir = home / f"damaged-{number}"
        shutil.copytree(undisturbed[1], workdir)
        harm(max((workdir / "checkpoints" / "24" / "params").rglob("d/*"), key=lambda p: p.stat().st_size))
        resumed = train(home, workdir)
        assert resumed.returncode == 0, resumed.stderr
        assert "the checkpoint of step 24 is damaged" in resumed.stderr and "resumed at step 18" in resumed.stderr
        assert (workdir / "damaged" / "24").is_dir()
        assert_same_state(final_state(workdir, STEPS), final_state(undisturbed[1], STEPS))


def test_a_memory_resumes_bit_for_bit(home):
    """The newest checkpoint is lost: the steps after the one before are done again, behind the memory that it holds."""

    def recurrent(workdir, *more):
        done = train(
            home, workdir, "--config.model.position=transformer_xl", "--config.model.memory_len=96",
            "--config.data.layout=stream", "--config.optimizer.micro_batches=1", "--config.num_steps=12",
            "--config.eval.eval_every_steps=6", *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    first, again = home / "memory", home / "memory-again"
    assert "no sample: the engine that decodes has no Transformer-XL memory" in recurrent(first).stderr
    shutil.copytree(first, again)
    shutil.rmtree(again / "checkpoints" / "12")
    assert "resumed at step 6" in recurrent(again, "--config.eval.memory_len=-1").stderr
    state = final_state(again, 12)
    assert_same_state(state, final_state(first, 12))
    held = [array for name, array in state.items() if "memory" in name]
    assert sorted(array.shape for array in held) == [(2, 4, 96, 32), (4, 96)] and all(array.any() for array in held)
    assert losses(again) == losses(first)
    assert evaluations(again)[6] == evaluations(first)[6] and evaluations(again)[12] != evaluations(first)[12]


def flip_a_bit(path: pathlib.Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:-100])


def test_more_steps_on_another_mesh_go_on_and_other_models_do_not(home, undisturbed):
    workdir = home / "longer"
    shutil.copytree(undisturbed[1], workdir)
    before = final_state(workdir, STEPS)
    refused = train(home, workdir, "--config.model.mlp_dim=32", "--config.optimizer.learning_rate=0.1", start=here)
    assert refused.returncode == 2
    assert "another config" in refused.stderr and "model.mlp_dim: 64 -> 32" in refused.stderr
    assert "optimizer.learning_rate: 0.001 -> 0.1" in refused.stderr
    (home / "corpus" / "new.py").write_text("changed = 1\n")
    try:
        refused = train(home, workdir, start=here)
    finally:
        (home / "corpus" / "new.py").unlink()
    assert refused.returncode == 2 and "begun with other data: the fingerprint" in refused.stderr
    assert_same_state(final_state(workdir, STEPS), before)
    more = flags(home, workdir, "--config.num_steps=26", "--config.eval.eval_every_steps=0", "--config.mesh.fsdp=2")
    longer = run("train", *more, cache=home / "cache", devices=2)
    assert longer.returncode == 0 and "resumed at step 24" in longer.stderr, longer.stderr
    assert "on 2 cpu (data 1 x fsdp 2 x tensor 1 x context 1)" in longer.stderr
    assert sorted(losses(workdir)) == list(range(1, 27))


def test_a_loss_that_is_not_finite_stops_the_run(home):
    done = train(
        home, home / "diverged", "--config.optimizer.learning_rate=1e30", "--config.optimizer.grad_clip_norm=0.0",
        "--config.optimizer.warmup_steps=8", "--config.checkpoint.checkpoint_every_steps=1",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: not finite at step" in done.stderr and "the loss was finite up to step" in done.stderr
    assert "Traceback" not in done.stderr
    good = done.stderr.rpartition("the last good checkpoint is ")[2].strip()
    step = int(pathlib.Path(good).name)
    params = {name: leaf for name, leaf in final_state(home / "diverged", step).items() if name.startswith("params")}
    assert len(params) > 5
    assert all(np.isfinite(leaf).all() for leaf in params.values())


def test_a_failing_disk_loses_nothing(home, undisturbed):
    """Files may grow to 64 KiB only, as on a disk that is full: the next save fails for real."""
    workdir = home / "full"
    shutil.copytree(undisturbed[1], workdir)
    before = final_state(workdir, STEPS)
    more = flags(home, workdir, "--config.num_steps=26")
    limited = ["bash", "-c", 'ulimit -f 64; exec "$0" "$@"', *command("train", *more)]
    failed = subprocess.run(limited, env=environment(home / "cache"), cwd=ROOT, capture_output=True, text=True)
    # Threads of the library that writes have their say too, maybe in the middle of a line; ours is one piece.
    ours = r"error: a checkpoint could not be written to [^\n]*; the one of step 24 is untouched\n"
    assert failed.returncode == 2 and len(re.findall(ours, failed.stderr)) == 1, failed.stderr
    assert_same_state(final_state(workdir, STEPS), before)
    assert run("train", *more, cache=home / "cache").returncode == 0


BAD = {
    "key": (["--config.model.num_layer=2"], "no key 'model.num_layer'; did you mean --config.model.num_layers?"),
    "type": (["--config.num_steps=many"], "--config.num_steps=many: it must be of type int, such as 24"),
    "shape": (["--config.model.num_kv_heads=3"], "num_heads 2 is not a multiple of num_kv_heads 3"),
    "row": (["--config.data.seq_len=65"], "data.seq_len 65 is above model.max_seq_len 64"),
    "micro": (["--config.batch_size=5"], "batch_size 5 is not a multiple of optimizer.micro_batches 2"),
    "mesh": (["--config.mesh.tensor=3"], "does not fit 1 device"),
    "tokenizer": (["--config.data.tokenizer=gpt5"], "'gpt5' does not exist; it must be bytes"),
    "vocabulary": (["--config.data.tokenizer=bpe:600"], "600 ids, above model.vocab_size 512"),
    "data set": (["--config.data.dataset=nothing"], "'nothing' is neither python_stdlib"),
    "schedule": (["--config.optimizer.schedule=cosine"], "must be one of warmup_cosine, warmup_stable_decay"),
    "keep": (["--config.checkpoint.keep=1"], "checkpoint.keep is 1; it must be at least 2"),
    "pattern": (
        ["--config.model.attention=stripes"],
        "'stripes'; a pattern is 'dense', 'banded:WINDOW', 'strided:STRIDE'",
    ),
    "lowering": (["--config.model.attention_lowering=cudnn"], "cannot do rows of several segments; blockwise and tpu"),
    "log": (["--config.eval.log_every_steps=-1"], "eval.log_every_steps is -1; it must be at least 0"),
    "no sample": (["--config.eval.sample_tokens=0"], "eval.sample_tokens is 0; it must be at least 1"),
    "no micro-batches": (["--config.optimizer.micro_batches=0"], "optimizer.micro_batches is 0"),
    "no rows": (["--config.batch_size=-8"], "batch_size is -8; it must be at least 1"),
    "seed": (["--config.seed=-1"], "seed is -1; it must be at least 0"),
    "large seed": (["--config.seed=4294967296"], "seed is 4294967296; it must be below 4294967296"),
    "ascent": (["--config.optimizer.grad_clip_norm=-1.0"], "grad_clip_norm is -1.0; it must be at least 0"),
    "beta": (["--config.optimizer.beta2=1.0"], "optimizer.beta2 is 1.0; it must be below 1"),
    "no pattern": (["--config.model.attention=(1,2)"], "model.attention has '1'; a pattern is 'dense'"),
    "float64": (["--config.model.dtype=float64"], "only with the environment variable JAX_ENABLE_X64=1"),
}


def test_bad_input_is_refused_in_words(home):
    """Each message through the job's own error path, and nothing written but the workdir."""
    for name, (overrides, words) in BAD.items():
        done = train(home, home / f"bad-{name}", *overrides, start=here)
        assert done.returncode == 2 and words in done.stderr, (name, done.stderr)
        assert "Traceback" not in done.stderr
        assert not (home / f"bad-{name}" / "data.json").exists()


def test_foreign_and_unwritable_workdirs(home):
    foreign = home / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    done = train(home, foreign, start=here)
    assert done.returncode == 2 and "is not empty and no run of gpt4jax" in done.stderr
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]
    other = home / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    for names in (["config.json"], ["config.json", "tokenizer.json"]):
        (other / names[-1]).touch()
        done = train(home, other, start=here)
        assert done.returncode == 2, done.stderr
        assert "is not a config of this version" in done.stderr or "is not empty and no run" in done.stderr
        assert sorted(p.name for p in other.iterdir()) == names
        assert (other / "config.json").read_text() == '{"model_type": "gpt2"}'
    done = train(home, foreign / "thesis.txt" / "below", start=here)
    assert done.returncode == 2 and "can't be created or written: Not a directory" in done.stderr


def test_help_answers_at_once():
    for name in ("train", "sample", "export"):
        start = time.monotonic()
        done = subprocess.run(command(name, "--help"), capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "--workdir" in done.stdout
        assert time.monotonic() - start < 5  # jax alone takes longer to import where this matters


def test_sample(home, undisturbed):
    def sample(*more, start=here):
        return start("sample", "--workdir", undisturbed[1], "--prompt", "import ", *more, cache=home / "nothing here")

    one, two = (sample("--max_tokens", 20, "--seed", 1, start=start) for start in (run, here))
    assert one.returncode == 0 and one.stdout == two.stdout and "step 24" in one.stderr, one.stderr
    assert sample("--max_tokens", 20, "--seed", 2).stdout != one.stdout
    refused = sample("--max_tokens", 100)
    assert refused.returncode == 2 and "exceed the model's max_seq_len 64" in refused.stderr
    nothing = here("sample", "--workdir", home, "--prompt", "x", cache=home)
    assert nothing.returncode == 2 and "is no run of gpt4jax" in nothing.stderr
