"""An emulator of Google's object store on this machine: `python tests/object_store.py PORT`, with one bucket, "bucket".

It serves one request at a time, keeps all in memory, and ignores preconditions such as ifGenerationMatch.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

BUCKET = "bucket"


def environ(port: int) -> dict[str, str]:
    """What lets gcsfs and TensorStore, whose client Orbax uses, talk to the emulator."""
    address = f"http://127.0.0.1:{port}"
    anonymous = {"NO_GCE_CHECK": "true", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # no waiting for credentials
    return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, **anonymous}


def start(env: Mapping[str, str] = os.environ) -> tuple[subprocess.Popen, int]:
    """The emulator's process and its port, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), str(port)]
    process = subprocess.Popen(command, env=dict(env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return process, port
        time.sleep(0.1)
    process.kill()
    raise TimeoutError("the emulator does not answer")


def main(port: int) -> None:
    """Serves until it is killed."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    theirs = objects.download

    def download(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        # The real store says with the content of which generation it is, and TensorStore can't go on without.
        theirs(request, response, storage, *args, **kwargs)
        if response.status < 300:
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]

    objects.download = download  # which `get` calls
    for _, methods in server.HANDLERS:
        for method, handler in methods.items():
            if handler is theirs:
                methods[method] = download
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
