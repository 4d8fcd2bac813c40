"""The job of alignment through its command line: every stage, again to the same bits, over devices, and refusals."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt4jax import model, weights
from gpt4jax.align import examples, world
from gpt4jax.training import metrics
from tests.runs import ROOT, assert_same_state, final_state, here

TINY = ROOT / "tests" / "configs" / "align_tiny.py"
STAGES = ("sft", "reward", "ppo", "dpo")


def align(cache, workdir, *overrides, devices=1):
    flags = ["--config", TINY, "--workdir", workdir, *overrides]
    return here("align.__main__", *flags, cache=cache, devices=devices)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("align")


@pytest.fixture(scope="module")
def whole(home):
    done = align(home, home / "whole")
    assert done.returncode == 0, done.stderr
    return done, home / "whole"


def lines(workdir, name):
    return [line[name] for line in metrics.read(workdir) if name in line]


def test_every_stage_leaves_weights_that_sample_takes(home, whole):
    done, workdir = whole
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(STAGES)
    page = (workdir / "report.html").read_text()
    assert [page.count(f"<h2>{stage}</h2>") for stage in STAGES] == [1] * 4 and "Gold gained" in page
    for stage in STAGES:
        loaded = weights.load(str(workdir / stage / "export"))
        assert loaded.tokenizer.decode([0, 5]) == "af" and loaded.config.vocab_size == 7
        assert len(lines(workdir / stage, "train/loss")) == 4
    flags = ["--weights", workdir / "ppo" / "export", "--prompt", "ab", "--max_tokens", "4"]
    told = here("sample", *flags, cache=home)
    assert told.returncode == 0 and set(told.stdout.strip()) <= set("abcdef")


def test_what_is_done_is_not_done_again_and_more_steps_go_on(home, whole):
    workdir = shutil.copytree(whole[1], home / "more")
    before = (workdir / "sft" / "done.json").stat().st_mtime_ns
    again = align(home, workdir, "--config.stages=('sft','dpo')", "--config.dpo.num_steps=6")
    assert again.returncode == 0 and "sft: done before, 4 steps" in again.stderr
    assert "resumed at step 4" in again.stderr and "dpo: 6 steps" in again.stdout
    assert (workdir / "sft" / "done.json").stat().st_mtime_ns == before
    longer = align(
        home, workdir, "--config.stages=('sft','dpo')", "--config.dpo.num_steps=6", "--config.sft.num_steps=5"
    )
    assert longer.returncode == 2 and "dpo was made from other weights than the stages before it" in longer.stderr
    other = align(home, workdir, "--config.sft.learning_rate=0.5")
    assert other.returncode == 2 and "begun with another config" in other.stderr


@pytest.mark.parametrize("stage", ["sft", "ppo"])  # all of them: `python -m tests.bench.align_chaos`
def test_a_stage_resumes_to_the_same_bits(home, whole, stage):
    workdir = shutil.copytree(whole[1], home / f"resumed-{stage}")
    shutil.rmtree(workdir / stage / "checkpoints" / "4")  # as if it had been killed after step 2
    shutil.rmtree(workdir / stage / "export")
    (workdir / stage / "done.json").unlink()
    again = align(home, workdir, f"--config.stages=('{stage}',)")
    assert again.returncode == 0 and "resumed at step 2" in again.stderr, again.stderr
    assert_same_state(final_state(workdir / stage, 4), final_state(whole[1] / stage, 4))
    ours, theirs = (load_file(one / stage / "export" / "model.safetensors") for one in (workdir, whole[1]))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_eight_devices_are_one(home, whole):
    workdir = home / "devices"
    stages = "--config.stages=('sft','reward','ppo')"
    done = align(home, workdir, "--config.mesh.fsdp=4", "--config.mesh.data=2", stages, devices=8)
    assert done.returncode == 0, done.stderr
    for stage in ("sft", "reward", "ppo"):
        for name in ("train/loss", "learning/grad_norm"):
            ours, theirs = (lines(one / stage, name) for one in (workdir, whole[1]))
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5, err_msg=f"{stage} {name}")


def test_scores_of_demonstrations_have_a_mean_of_zero(home, whole):
    done = json.loads((whole[1] / "reward" / "done.json").read_text())
    assert done["num_steps"] == 4
    head = load_file(whole[1] / "reward" / "export" / "head.safetensors")
    loaded = weights.load(str(whole[1] / "reward" / "export"))
    train, _ = examples.split(world.demonstrations(72, seed=0), 0.1)
    tokens = np.full((len(train), 8), 6)
    for number, row in enumerate(train):
        said = ["abcdef".index(letter) for letter in row["prompt"] + row["response"]]
        tokens[number, 1 : len(said) + 1] = said
    last = [len(row["prompt"] + row["response"]) + 1 for row in train]
    x_btd = np.asarray(model.features(loaded.config, loaded.params, tokens)[0])
    scores = x_btd[np.arange(len(train)), last] @ head["score_d"] + head["bias"]
    assert np.mean(scores) == pytest.approx(0, abs=1e-4) and np.std(scores) > 1e-3


def test_adapters_train_through_all_stages_and_merge(home, whole):
    rank = [f"--config.{stage}.lora_rank=2" for stage in STAGES]
    judge = f"--config.ppo.reward={whole[1] / 'reward' / 'export'}"
    (home / "text.jsonl").write_text(
        "".join(
            json.dumps({"text": f"{number:06}".translate(str.maketrans("0123456789", "abcdefabcd")) * 4}) + "\n"
            for number in range(99)
        )
    )
    text = [
        "--config.ppo.pretraining_coefficient=0.5", "--config.ppo.pretraining_rows=2",
        f"--config.data.dataset=jsonl:{home / 'text.jsonl'}",
    ]  # fmt: skip
    stages = "--config.stages=('sft','ppo','dpo')"
    done = align(home, home / "lora", *rank, *text, judge, stages, "--config.ppo.average_decay=0.0")
    assert done.returncode == 0, done.stderr
    assert all(0 < loss < 9 for loss in lines(home / "lora" / "ppo", "ppo/pretraining_loss"))
    base = weights.load(str(home / "lora" / "sft" / "export")).params
    for stage in ("ppo", "dpo"):
        state = final_state(home / "lora" / stage, 4)
        assert not any("embed" in name for name in state), "only adapters are trained"
        tuned = weights.load(str(home / "lora" / stage / "export")).params
        np.testing.assert_array_equal(tuned["embed"]["token_vd"], base["embed"]["token_vd"])
        change = np.asarray(tuned["layers"]["up_df"] - base["layers"]["up_df"], np.float64)
        assert [np.linalg.matrix_rank(layer, tol=1e-5) for layer in change] == [2, 2]
        part = "policy" if stage == "ppo" else "decoder"
        sides = (state[f"params['{part}']['up_df']['{side}']"].astype(np.float64) for side in "ab")
        product = np.einsum("ldr,lrf->ldf", *sides)
        np.testing.assert_allclose(change, 16 / 2 * product, atol=1e-6)  # alpha / rank


def test_a_policy_that_runs_away_is_stopped(home, whole):
    workdir = shutil.copytree(whole[1], home / "away")
    shutil.rmtree(workdir / "ppo")
    wild = ["--config.ppo.learning_rate=0.1", "--config.ppo.kl_coefficient=0.0", "--config.ppo.kl_target=0.0",
            "--config.ppo.max_kl=1.0", "--config.ppo.num_steps=20", "--config.stages=('ppo',)",
            "--config.checkpoint.checkpoint_every_steps=1"]  # fmt: skip
    done = align(home, workdir, *wild)
    assert done.returncode == 2 and "the policy runs away: in round" in done.stderr, done.stderr
    assert "ppo.max_kl is 1" in done.stderr
    assert sorted(int(path.name) for path in (workdir / "ppo" / "checkpoints").iterdir() if path.name.isdecimal())


REFUSED = [
    (["--config.stages=('sft','rl')"], "each of sft, reward, ppo, dpo may be there once"),
    (["--config.stages=('ppo',)"], "the stage 'sft' is not done"),
    (["--config.stages=('sft',)", "--config.sft.data=moon:3"], "there is no such source"),
    (["--config.stages=('sft',)", "--config.sft.data="], "sft.data is not set"),
    (["--config.max_response=3", "--config.stages=('sft',)"], 'too_long="drop" leaves it out'),
    (["--config.held_out=1.5"], "held_out is 1.5"),
    (["--config.data.seq_len=99", "--config.stages=('sft',)"], "above model.max_seq_len 16"),
    (["--config.sft.lora_rank=2", "--config.sft.lora_targets=quary"], "lora_targets: adapters are for quary"),
    (["--config.data.tokenizer=bpe:300", "--config.stages=('sft',)"], "which alignment has not"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_bad_input_is_refused_in_words(home, tmp_path, overrides, words):
    done = align(home, tmp_path / "run", *overrides)
    assert done.returncode == 2 and words in done.stderr, done.stderr


PPO_REFUSED = [
    (["--config.ppo.kl_estimator=k4"], "ppo.kl_estimator is 'k4'; it must be one of k1, k2, k3"),
    (["--config.ppo.minibatches=3"], "not a multiple of ppo.minibatches"),
    (["--config.ppo.reward=nowhere"], "nowhere is no reward model: it has no head.safetensors"),
    (["--config.ppo.discount=1.5"], "ppo.discount is 1.5; it must be from 0 to 1"),
    (["--config.ppo.clip=0.0"], "ppo.clip is 0.0; it must be above 0"),
    (["--config.ppo.reward=gold"], "ppo.value_from is 'reward', and there is no reward model; set it to 'policy'"),
    (["--config.ppo.reward="], "ppo.reward is empty and ppo.rules is 0"),
    (["--config.ppo.rules=1.0"], "ppo.rules needs the kind of each prompt, and row 1 has None"),
    (["--config.max_response=4"], "the known world is exact for data.tokenizer=characters:abcdef"),
    (["--config.dpo.beta=0.0", "--config.stages=('dpo',)"], "dpo.beta is 0.0"),
]


@pytest.mark.parametrize(("overrides", "words"), PPO_REFUSED)
def test_settings_of_later_stages_that_cannot_be(home, whole, tmp_path, overrides, words):
    for stage in ("sft", "reward"):
        shutil.copytree(whole[1] / stage, tmp_path / stage)
    done = align(home, tmp_path, *(["--config.stages=('ppo',)", *overrides]))
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_a_reward_model_of_another_tokenizer_is_refused(home, whole, tmp_path):
    other = shutil.copytree(whole[1] / "reward" / "export", tmp_path / "other")
    path = pathlib.Path(other) / "tokenizer.json"
    path.write_text(path.read_text().replace('"a":0', '"z":0').replace('"a": 0', '"z": 0'))
    shutil.copytree(whole[1] / "sft", tmp_path / "sft")
    done = align(home, tmp_path, "--config.stages=('ppo',)", f"--config.ppo.reward={other}")
    assert done.returncode == 2 and "has another tokenizer than the policy" in done.stderr, done.stderr
    assert jax.process_count() == 1
