"""Files that are there whole or not at all."""

import os
import pathlib


def replace(path: pathlib.Path, data: bytes | str) -> None:
    """Writes a file as a whole, its folder too: a kill, or another process, leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data.encode() if isinstance(data, str) else data)
    part.replace(path)
