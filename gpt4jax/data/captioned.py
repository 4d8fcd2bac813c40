"""Real images with a text each: two vendors' emoji out of pinned packages, and folders or lists of the user's own."""

import collections
import hashlib
import json
import pathlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gpt4jax import files
from gpt4jax.data import images
from gpt4jax.data.fetch import Archive, fetch_archive
from gpt4jax.errors import UserError


class Captioned(NamedTuple):
    """An encoded image and its text; `key` is its own name, `group` a topic."""

    key: str
    caption: str
    group: str
    data: bytes


VENDORS = {  # Noto's are under Apache-2.0, Twemoji's under CC-BY-4.0
    "google": Archive(
        "npm", "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    ),
    "twitter": Archive(
        "npm", "emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
    ),
}  # fmt: skip
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def emoji(vendor: str, cache_dir: pathlib.Path) -> list[Captioned]:
    """A vendor's emoji, 64 x 64 pixels, with their names in lower case ("grinning face"), without skin tones.

    The same emoji has the same key and caption with each vendor.

    Raises:
        UserError: another vendor, or a package that can't be had.
    """
    if vendor not in VENDORS:
        raise UserError(f"there are no emoji of {vendor!r}; there are those of {' and '.join(VENDORS)}")
    return emoji_of(fetch_archive(VENDORS[vendor], cache_dir), vendor)


def of(name: str, cache_dir: pathlib.Path) -> list[Captioned]:
    """The captioned images that a config names: "emoji:VENDOR" or "captioned:FOLDER".

    Raises:
        UserError: another name, or as `emoji` and `folder` do.
    """
    kind, _, rest = name.partition(":")
    if kind == "emoji":
        return emoji(rest, cache_dir)
    if kind == "captioned" and rest:
        return own(files.local_copy(files.user_path(rest), beside=True))
    raise UserError(f"{name!r} names no captioned images: it must be emoji:google, emoji:twitter or captioned:FOLDER")


def digest(found: Sequence[Captioned]) -> str:
    """A sha256 of images and captions."""
    total = hashlib.sha256()
    for one in found:
        total.update(hashlib.sha256(one.data).digest() + one.caption.encode() + b"\0")
    return total.hexdigest()


def emoji_of(archive: pathlib.Path, vendor: str) -> list[Captioned]:
    """The emoji in a package that lies on the disk; no two have one caption, for a caption is a class."""
    found = []
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            member = tar.extractfile(name)
            if member is None:
                raise UserError(f"{archive.name} holds no file {name}")
            return member.read()

        rows = json.loads(read("package/emoji.json"))
        captions = names(rows)
        wanted = {f"package/img/{vendor}/64/{row['image']}": row for row in rows if row[f"has_img_{vendor}"]}
        files = {member.name: read(member.name) for member in tar.getmembers() if member.name in wanted}
    for name, row in wanted.items():
        if name in files:
            group = f"{row['category']}/{row['subcategory']}"
            found.append(Captioned(row["unified"], captions[row["unified"]], group, files[name]))
    return found


def names(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A caption for each `unified` of emoji.json: its name in lower case, other than those of all others.

    Those that share a name take their short names instead ("man_in_tuxedo" and "person_in_tuxedo" are both named MAN IN
    TUXEDO). All rows are looked at, so that captions don't depend on what a vendor has drawn.

    Raises:
        UserError: two have one caption nevertheless.
    """
    shared = collections.Counter(row["name"].lower() for row in rows)
    captions = {
        row["unified"]: row["short_name"].replace("_", " ") if shared[row["name"].lower()] > 1 else row["name"].lower()
        for row in rows
    }
    if twice := sorted(caption for caption, n in collections.Counter(captions.values()).items() if n > 1):
        raise UserError(f"several emoji have the caption {', '.join(twice)}")
    return captions


def own(path: pathlib.Path) -> list[Captioned]:
    """The captioned images of a `folder`, or of a list (`jsonl`)."""
    return jsonl(path) if path.is_file() else folder(path)


def folder(path: pathlib.Path) -> list[Captioned]:
    """Every image of a folder beside which a text of the same name lies: its first line is the caption.

    Debian's `tuxpaint-stamps-default` has this layout, with some images and texts that stand alone: they are left out.
    A group is a subfolder.

    Raises:
        UserError: no such folder, none of it is an image with a text, a text without a caption, or a link out of it.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}")
    found = []
    for image in sorted(path.rglob("*")):
        text = image.with_suffix(".txt")
        if image.suffix.lower() in _SUFFIXES and image.is_file() and text.is_file():
            for one in (image, text):
                beside(path, str(one.relative_to(path)), str(path))
            caption = first_line(text)
            if not caption:
                raise UserError(f"{text} says nothing in its first line, which is the caption")
            relative = image.relative_to(path)
            found.append(Captioned(relative.as_posix(), caption, relative.parent.as_posix(), read_bounded(image)))
    if not found:
        raise UserError(f"{path} has no image ({', '.join(_SUFFIXES)}) with a text of the same name beside it")
    return found


def jsonl(path: pathlib.Path) -> list[Captioned]:
    """The images of a list with a line {"image": path, "text": caption} each; paths begin beside the list.

    A key is the list's name and the line's number, for an image may have several captions; a group is a subfolder.

    Raises:
        UserError: no such list, an empty one, a line that is no such object, no caption, or an image that is not there
            or lies elsewhere.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            name, text = row["image"], row["text"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError("one of them is no text")
            text.encode()  # JSON can hold halves of characters, which nothing after this can
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f'{where}: not an object of "image" and "text" ({error})') from error
        if not text.strip():
            raise UserError(f"{where}: no caption")
        data = read_bounded(beside(path.parent, name, where))
        group = pathlib.PurePath(name).parent.as_posix()
        found.append(Captioned(f"{path.name}:{number}", text.strip(), group, data))
    if not found:
        raise UserError(f"{path} names no images")
    return found


def first_line(path: pathlib.Path) -> str:
    """The first line of a text, without the space around it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors may put a mark before the first letter
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text") from error
    return lines[0].strip() if lines else ""


def read_bounded(path: pathlib.Path) -> bytes:
    """The bytes of a file that is no larger than an image may be.

    Raises:
        UserError: it is not there, no file, or larger.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a device that might never end
            raise UserError(f"the image {path} can't be read: it is no file")
        if path.stat().st_size > images.MAX_BYTES:
            raise UserError(f"{path}: a file of {path.stat().st_size:,} bytes; an image may have {images.MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the image {path} can't be read: {error.strerror or error}") from error


def beside(root: pathlib.Path, name: str, where: str) -> pathlib.Path:
    """The path of a file that a data set names, which must lie in the data set's own folder.

    Raises:
        UserError: it leads out of there, by "..", as an absolute path or through a link; or it is no path.
    """
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a ring, a zero byte
        raise UserError(f"{where}: {name!r} is no path of a file ({error})") from error
    if pathlib.PurePath(name).is_absolute() or not path.is_relative_to(root.resolve()):
        raise UserError(f"{where}: {name!r} lies outside {root}")
    return path


def by_name(captions: Sequence[Captioned]) -> Iterator[tuple[str, bytes, str]]:
    """(key, encoded image, caption) of each, as `pairs.decoded` takes them."""
    return ((one.key, one.data, one.caption) for one in captions)
