"""Images through the public command line: a run that is interrupted and goes on, its answers, prompts, and CLIP."""

import shutil

import numpy as np
import pytest
from PIL import Image

from gpt4jax import config as configuration
from gpt4jax import sample, train
from gpt4jax.data import rendered
from gpt4jax.errors import UserError
from gpt4jax.training import metrics
from tests import runs
from tests.runs import TINY

IMAGES = (
    "data.tokenizer=bytes", "vision.image_token=258", "vision.frontend=linear", "vision.patch_size=16",
    "vision.max_patches=12", "model.max_seq_len=512", "data.seq_len=512", "data.dataset=rendered:40",
    "model.dropout=0.0",
    "eval.sample_prompt=", "eval.num_rows=40", "num_steps=6", "optimizer.warmup_steps=2", "eval.eval_every_steps=0",
    "checkpoint.checkpoint_every_steps=3",
)  # fmt: skip


def config_flags(*overrides):
    return ["--config", TINY, *(f"--config.{one}" for one in overrides)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished run, and an image."""
    home = tmp_path_factory.mktemp("home")
    found = runs.run("train", *config_flags(*IMAGES), "--workdir", home / "run", cache=home / "cache")
    assert found.returncode == 0, found.stderr
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 400, 3), np.uint8)).save(home / "a.png")
    return home


def test_a_run_counts_answers_with_and_without_images(home):
    last = metrics.read(home / "run")[-1]
    for task in rendered.TASKS:
        assert 0 <= last[f"eval/{task}/accuracy"] <= 1 and 0 <= last[f"eval/{task}/accuracy_blind"] <= 1
    assert last["eval/heldout/loss"] > 0


def test_a_run_that_was_stopped_ends_with_the_same_bits(home):
    shutil.copytree(home / "run", home / "again")
    shutil.rmtree(home / "again" / "checkpoints" / "6")
    done = runs.run("train", *config_flags(*IMAGES), "--workdir", home / "again", cache=home / "cache")
    assert done.returncode == 0 and "resumed at step 3" in done.stderr
    ours, theirs = (runs.final_state(home / name, 6) for name in ("again", "run"))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_a_prompt_with_an_image_is_continued_and_its_size_told(home, capsys):
    flags = ["--workdir", str(home / "run"), "--temperature", "0", "--max_tokens", "5"]
    assert sample.main([*flags, "--prompt", "<|image|>What is A?\n", "--image", str(home / "a.png")]) == 0
    assert "400 x 90 pixels are more than the model takes (12 patches of 16^2): made" in capsys.readouterr().err
    image = ["--image", str(home / "a.png")]
    flags[3:] = "1", "--max_tokens", "100"  # greedily such a run says nothing but empty lines, whatever it sees
    two = ["--rationale", "Describe it.\n", *image]
    assert sample.main([*flags, "--prompt", "<|image|>What is A?\n", *two]) == 0
    answer, told = capsys.readouterr()
    assert sample.main([*flags, "--prompt", "<|image|>Describe it.\n", *image]) == 0
    said = capsys.readouterr().out[:-1]
    by_hand = "<|image|>Describe it.\n" + said.rstrip("\n") + "\nWhat is A?\n"
    assert sample.main([*flags, "--prompt", by_hand, *image]) == 0
    assert capsys.readouterr().out == answer and said.strip() and said in told
    # Room is needed for what was said, not for all that could have been.
    short = [*flags[:2], "--temperature", "0", "--stop", "\n", "--max_tokens", "300"]
    assert sample.main([*short, "--prompt", "<|image|>What is A?\n", *two]) == 0
    with pytest.raises(UserError, match="exceed"):
        sample.main([*short[:-1], "600", "--prompt", "<|image|>What is A?\n", *two])
    with pytest.raises(UserError, match="a rationale is about images, and the prompt has no"):
        sample.main([*flags, "--prompt", "What is A?", *two])
    with pytest.raises(SystemExit):
        sample.main([*flags, "--chat", "--rationale", "Describe it."])
    with pytest.raises(UserError, match="has 0 times .*, and 1 images were given"):
        sample.main([*flags, "--prompt", "What is A?", "--image", str(home / "a.png")])
    (home / "bad.png").write_text("no image")
    with pytest.raises(UserError, match="bad.png: no image in one of the formats"):
        sample.main([*flags, "--prompt", "<|image|>", "--image", str(home / "bad.png")])


def test_two_towers_are_trained_on_a_folder_and_name_its_images(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GPT4JAX_CACHE", str(home / "cache"))
    for i in range(12):
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"grey {i}")
    found = [
        *IMAGES[:2], "vision.frontend=vit", "vision.class_token=true", "vision.clip_dim=8", "vision.patch_size=8",
        "vision.max_patches=4", "vision.num_layers=1", "vision.embed_dim=16", "vision.num_heads=2", "vision.mlp_dim=32",
        f"data.dataset=captioned:{tmp_path}", f"data.eval_split=captioned:{tmp_path}", "data.seq_len=16", "num_steps=4",
        "optimizer.warmup_steps=1", "optimizer.micro_batches=1", "batch_size=8", "eval.sample_prompt=",
        "eval.eval_every_steps=0", "model.dropout=0.0",
    ]  # fmt: skip
    config = configuration.load(str(TINY), found)
    assert train.train(config, tmp_path / "run") == 0
    last = metrics.read(tmp_path / "run")[-1]
    assert last["eval/zero_shot/chance"] == 1 / 12 and 0 <= last["eval/zero_shot/top_1"] <= last["eval/zero_shot/top_5"]
