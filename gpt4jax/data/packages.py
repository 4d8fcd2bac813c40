"""A corpus of code: the Python source of pinned packages, deduplicated, with whole packages held out.

Packages of pure Python under permissive licences, mostly written by hand (generated API clients are left out, for
they are as long as they are easy). Nothing of them is imported or run.
"""

import hashlib
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpt4jax.data.fetch import Wheel, fetch_wheels

# Tests repeat themselves, and vendored code repeats others.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "testdata", "idle_test", "_vendor", "vendor", "vendored", "_vendored_packages"}
)
WINDOW = 8  # lines that are compared at once
SAMPLED = 4  # one window in so many is remembered
COPIED = 0.5  # a file with more than this share of windows seen before is left out
RULES_VERSION = 1  # of what `documents` leaves out; a change makes new corpora


class Package(NamedTuple):
    """A pinned package; `held_out`: all its files are for evaluation."""

    wheel: Wheel
    license: str
    held_out: bool


# package version license sha256-of-the-wheel [held_out]
_TABLE = """
allennlp 2.10.1 Apache-2.0 d840f2cb285ded77f48fbe5c8f52fe955dc48d4462cae2baf4668eca10dd42fb
apache-airflow-core 3.3.2 Apache-2.0 99258922bccec15be4700ff89f3c942b8acd93407e263c287ce863e671bb3c50
cinder 29.0.0 Apache-2.0 da8b1441740fb2dcfd76138607c6a96fc14d2548826741a6246bbd0d73f88860
cirq-core 1.7.0 Apache-2.0 9d2e9610b06e2b2b2195184f44c0df4e94f31485831f8e1c6a96c858b7897bce
conan 2.34.0 MIT 4e268bb9ad38614141c7274a769c7226122e3660e4d5eb545a0c7f7170b53272
dagster 1.13.29 Apache-2.0 65f7bf2f52c0c1219cb1ca63a1f0f95a1af83d12e94ebec7598e47ee49889859
diffusers 0.42.1 Apache-2.0 9154faa704ce00e0b77f568e0d64786064368528aab5fc14eeea92f87d788014
distributed 2026.8.0 BSD-3-Clause 3bd8882861a2cf497453f28c6b61135fa8ef2bb1d6885ad3b9f27e887e9c0e01
django-cms 5.1.3 BSD-3-Clause acf31919aab389d2bea253efa97a901bf55e96046a252f23a7a742e495848a5e
dspy 3.4.1 MIT afda9e7f8b3d46be0829af19ac1153a6feaa6db5923f2b1011eef547fb15ce2d
glance 33.0.0 Apache-2.0 680091845b2fb8e395926a6760f82b569facb6fd0521a0cfaa0fa2bc014d3701
great_expectations 1.24.1 Apache-2.0 a6d57e0904e3aaf51839fcec7352b652881d20e5dbdf4aa731ffb8ee8f93ae13
haystack-ai 3.4.1 Apache-2.0 f9093156d534adcf92ef68d03601c11b67f0945e81b00e999504b68bce4fdd80
homeassistant 2024.3.3 Apache-2.0 6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577
ipython 9.18.1 BSD-3-Clause 997ce9140d374531a61069c70c0f9ef299d6dd3559ea0f94b8af589726e3c1d5
jax 0.10.2 Apache-2.0 724d73c4678d8b06f6a6ab4db1b8a2fea8cd4f1e2c2564f99601634ec7b8d1c6
keras 3.15.1 Apache-2.0 836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20
keras-hub 0.32.0 Apache-2.0 c0a07ed19b894f5588188afd841659263eb6d3732e21188c82e3e7d3b6de4268
keystone 30.0.0 Apache-2.0 d0fa097278b1c1eda5b2c727766322a6a8afac0ed848d3104253855d4d483515
lightning 2.6.6 Apache-2.0 2bcbd6ee840071cd076c7dc9953d7ac1040df92f1c5fa76583aae644f037ab85
meson 1.12.1 Apache-2.0 930bc7542cbd9f57009e182fd014eba48cf1a0180a7b9006d2d32d8f168d8b02
mlflow 3.18.0 Apache-2.0 be7d84ba0d0b12392f5b53260cdb3e6d7b7ef4b80c29da90a89b5a1f6db7102f
mne 1.13.2 BSD-3-Clause 36bbdd9fdc68431309a75e9dc6331b9de085cb6836688ac50b7b89f141a83cc3
monai 1.6.1 Apache-2.0 dbd3b1dd309e752e0477ed73fde03b92f80ac74bfb8a8c4260f018b5d6ab2b0b
moto 5.2.5 Apache-2.0 eef62cdcf3bfe73e0863743511ba042dfaba04ba3d5ecdcb896a196c693ad528
neutron 29.0.0 Apache-2.0 6e998e2e55d233ff757f3ae1d53dd8dfd2cb455a01868e494c22fd6b8b0aba36
nipype 1.11.0 Apache-2.0 4e20282c7d30d2ff69b54fa0d1e6d3da5d66fda12ac4f9e06be183a3c1269d37
nova 34.0.0 Apache-2.0 8b46997836961762608e6e46e6d4945325d8a1fb8004e79e552e55839061f10c
openmdao 3.45.1 Apache-2.0 2ac96fcd3ebd4f3096d527f6f792f4b5ddb8823093c2fff1f89f147159fab6da
peft 0.21.2 Apache-2.0 106ab6077ff72c54d21577f9af5970e34bac7582cb14209f7b2b511e322a4eae
pennylane 0.45.1 Apache-2.0 b8cc7f590c43281b6e35b3a35707e9583c6b7babeb31dcf6f1cbde32a754ab93
prefect 3.9.1 Apache-2.0 0c662e26e971b617993eed1f3d02fb8bc3c2dd47bee521b495f6e4dfeb38ae74
pygments 2.21.0 BSD-2-Clause 2363c69b61c4a97c838da3b130dcd6468f4848992b21a82f2a63ec34377137d9
pyro-ppl 1.9.2 Apache-2.0 4fa9a96e1af113a8b2bdf5d54299f6a86b05aa6f1be1761f520a7114c186902a
sentence-transformers 6.2.0 Apache-2.0 ffb51ccfef65427cfa61776d0eeeb257600b0099cf0c7533ae9a6856d31e4665
setuptools 84.2.1 MIT ca140b45d5325a9478f880e351484f62fef15f336462e449ca0c03c873d589c2
sglang 0.5.10.post1 Apache-2.0 a854a68b11caf6b4b55c241a44378a7cdede7ede325db85c955f131506703bc6
speechbrain 1.1.2 Apache-2.0 9fea4144c917ea58bcf13f17a1a1759179ed7472a30ec8416e7c7c8cf21d9c9a
sphinx 9.0.4 BSD-2-Clause 5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb
sqlfluff 4.5.0 MIT 471a9abcad8061e36b69f711a6d89393241e30f9d1e0869f79965c0ae2c889c7
stanza 1.15.0 Apache-2.0 1da8a072de5ff82a9776016d87e1c09fe08b35336e5f8071b79dc324aece0c7a
sympy 1.14.0 BSD-3-Clause e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5
tensorflow-datasets 4.9.10 Apache-2.0 7ec065f0a628e28152b487ba9cbe72fa36d3854705d9f3abd04c6cf5d7a91527
tensorflow-probability 0.25.0 Apache-2.0 f3f4d6431656c0122906888afe1b67b4400e82bd7f254b45b92e6c5b84ea8e3e
textual 8.2.8 MIT 267375fd402dc8d981457212efa71f0e3365fd17bba144ba9bb3ed7563cb374a
timm 1.0.31 Apache-2.0 5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7
torch-geometric 2.8.1 MIT b628de243c0893f3435b6eca9a7bbc07f3219293ed27c974b8929aaae42e65d0
torchmetrics 1.9.0 Apache-2.0 bfdcbff3dd1d96b3374bb2496eb39f23c4b28b8a845b6a18c313688e0d2d9ca1
transformers 5.23.0 Apache-2.0 018e82fd07490ad5bb58414f65e31576033dc7f36bed10c574843f69b90991bf
trl 1.16.0 Apache-2.0 c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396
troposphere 4.11.1 BSD-2-Clause 763e306c8c1029eb6371d506b4f30964efee7afa802ed440615dbbd7d225a6ee
twisted 26.10.0 MIT 3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8
wagtail 8.0.1 BSD-3-Clause 1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c
celery 5.7.0 BSD-3-Clause 18310a9c919f9029e4735367484d93e6a25cdfd30afdc474622cc263d9b35f6e held_out
networkx 3.6.1 BSD-3-Clause d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762 held_out
nltk 3.10.4 Apache-2.0 769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51 held_out
reportlab 5.1.0 BSD-3-Clause 59fdbaec5efe437095ad1d7292ec9a271c8ca2d3ec75e889c6e61400929b90df held_out
xarray 2026.9.0 Apache-2.0 fe349fa871628b1a0a5217af3fe1283a2862d5485156e6eda354fffb81c3bb7c held_out
"""


def packages() -> tuple[Package, ...]:
    """The table: held-out packages first, so that what training shares with them is what goes."""
    rows = [line.split() for line in _TABLE.strip().splitlines()]
    table = [Package(Wheel(row[0], row[1], row[3]), row[2], row[4:] == ["held_out"]) for row in rows]
    return tuple(sorted(table, key=lambda package: not package.held_out))


def fingerprint(table: Iterable[Package]) -> str:
    """A sha256 of all that decides the corpus: the wheels, which are held out, and the rules."""
    rules = repr((sorted(SKIPPED_FOLDERS), WINDOW, SAMPLED, COPIED, RULES_VERSION))
    lines = [f"{package.wheel.sha256} {package.held_out}" for package in table]
    return hashlib.sha256("\n".join([rules, *lines]).encode()).hexdigest()


class SourceFile(NamedTuple):
    """A file of a package: "package/path", its bytes, whether it is held out, and whether it copies another."""

    key: str
    data: bytes
    held_out: bool
    copied: bool


def documents(table: Iterable[Package], cache_dir: pathlib.Path) -> Iterator[SourceFile]:
    """The packages' files, without tests and vendored code, in a fixed order; wheels are fetched."""
    table = tuple(table)
    paths = fetch_wheels([package.wheel for package in table], cache_dir)
    seen = Seen()
    for package, path in zip(table, paths, strict=True):
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(wheel.namelist()):
                if not name.endswith(".py") or SKIPPED_FOLDERS & set(name.split("/")):
                    continue
                data = wheel.read(name)
                yield SourceFile(f"{package.wheel.package}/{name}", data, package.held_out, seen.copied(data))


class Seen:
    """The files so far, as hashes of their runs of `WINDOW` lines."""

    def __init__(self) -> None:
        self._files: set[bytes] = set()
        self._windows: set[int] = set()

    def copied(self, data: bytes) -> bool:
        """Whether a file is a copy of an earlier one, or mostly made of earlier ones; it is remembered.

        Lines are compared without the spaces around them, empty ones not at all. A file of fewer lines than a window
        is one window.
        """
        lines = [line for line in (line.strip() for line in data.splitlines()) if line]
        whole = hashlib.sha256(b"\n".join(lines)).digest()
        if whole in self._files:
            return True
        self._files.add(whole)
        windows = {_hash(lines[i : i + WINDOW]) for i in range(max(1, len(lines) - WINDOW + 1))}
        sampled = {window for window in windows if window % SAMPLED == 0}
        copied = len(sampled & self._windows) > COPIED * len(sampled)
        self._windows |= sampled
        return copied


def _hash(lines: list[bytes]) -> int:
    return int.from_bytes(hashlib.blake2b(b"\n".join(lines), digest_size=8).digest(), "big")
