"""Weights by a hub id, without a network: from a cache that is laid out as huggingface_hub lays it out."""

import shutil

import pytest
from huggingface_hub import constants, errors

from gpt4jax import weights
from gpt4jax.errors import UserError
from gpt4jax.weights import source
from tests.weights import recorded

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    repository = tmp_path / "models--org--tiny"
    folder = recorded.write(repository / "snapshots" / COMMIT, "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    # What HF_HOME and HF_HUB_OFFLINE=1 set when the library is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_cached_repository(cached, tmp_path):
    assert weights.load("org/tiny", cache_dir=tmp_path).config.vocab_size == 61
    assert source.find(f"org/tiny@{COMMIT}", tmp_path) == cached
    with pytest.raises(UserError, match="there is no folder org/tiny@v2, and it could not be fetched.* network"):
        source.find("org/tiny@v2", tmp_path)
    with pytest.raises(UserError, match="there is no folder org/other, and it could not be fetched.* network"):
        source.find("org/other", tmp_path)
    (cached / "config.json").rename(cached / "other.json")
    with pytest.raises(UserError, match="org/tiny on the Hugging Face hub has no config.json; of a repository of GGUF"):
        source.find("org/tiny", tmp_path)
    (cached / "other.json").rename(cached / "config.json")
    shutil.move(cached / "model.safetensors", cached / "pytorch_model.bin")
    with pytest.raises(UserError, match="as a pickle only"):
        weights.load("org/tiny", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "org/x@v1 on the Hugging Face hub is gated: accept its terms"),
        (errors.RepositoryNotFoundError, "there is no folder org/x, and no such repository on the Hugging Face hub"),
        (errors.RevisionNotFoundError, "org/x on the Hugging Face hub has no revision v1"),
        (errors.HfHubHTTPError, "org/x@v1, and it could not be fetched from the Hugging Face hub"),
        (ConnectionError, "could not be fetched .* network"),
    ],
)
def test_errors_of_the_hub_in_words(kind, words, tmp_path, monkeypatch):
    asked = {}

    def refuse(repository, **options):
        asked.update(options)
        raise kind.__new__(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=words):
        source.find("org/x@v1", tmp_path)
    assert asked == dict(revision="v1", allow_patterns=["*.safetensors", "*.json", "*.jinja"])  # never a pickle
