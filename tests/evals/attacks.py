# ruff: noqa: E501 # an attack a line
"""Programs that try to get out of the sandbox, or to pass a test without solving it.

Each is run as a program, and as the body of a solution to a problem whose tests it can't know. What it did is looked for
from outside: files that changed or appeared, connections and packets that arrived, a secret of the parent's in what it
wrote, processes that are left, the time that it took, whether the parent and the sandbox still work.

FOLDER, PORT, PARENT and SOCKET stand for a folder of the parent's, a listening port, the parent's process and a
listening local socket. Attacks in HARMLESS are run without a sandbox too, to see that the observer sees them.
"""

import contextlib
import os
import pathlib
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator

from gpt4jax.evals.sandbox import Limits, Problem, Sandbox

_SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall({}), ctypes.get_errno())
"""
_SOCKET = """
import socket
s = socket.socket({})
{}
"""
_WRITE = """
import os, pathlib
{}
"""

# One an entry: name, and a program.
ATTACKS: dict[str, str] = {
    # The network.
    "tcp": _SOCKET.format("socket.AF_INET", "s.connect(('127.0.0.1', PORT)); s.sendall(b'x')"),
    "tcp over ipv6": _SOCKET.format("socket.AF_INET6", "s.connect(('::ffff:127.0.0.1', PORT))"),
    "udp": _SOCKET.format("socket.AF_INET, socket.SOCK_DGRAM", "s.sendto(b'x', ('127.0.0.1', PORT))"),
    "local socket": _SOCKET.format("socket.AF_UNIX", "s.connect('SOCKET')"),
    "abstract local socket": _SOCKET.format("socket.AF_UNIX", "s.bind(chr(0) + 'planted')"),
    "raw socket": _SOCKET.format("socket.AF_INET, socket.SOCK_RAW, 1", "s.sendto(b'x' * 8, ('127.0.0.1', 0))"),
    "packet socket": _SOCKET.format("socket.AF_PACKET, socket.SOCK_RAW", "print(s.recv(99))"),
    "netlink": _SOCKET.format("socket.AF_NETLINK, socket.SOCK_RAW, 0", "s.bind((0, 0))"),
    "vsock": _SOCKET.format("40, socket.SOCK_STREAM", "s.connect((2, 1))"),
    "socket by its number": _SYSCALL.format("41, 2, 1, 0"),
    "a pair of sockets": "import socket\na, b = socket.socketpair()\na.sendall(b'x')",
    "url": "import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:PORT', timeout=1).read())",
    "server": "import socket\nsocket.create_server(('0.0.0.0', 0)).accept()",
    "io_uring": _SYSCALL.format("425, 8, ctypes.create_string_buffer(120)"),
    # Files.
    "write a file": _WRITE.format("open('FOLDER/planted', 'w').write('x')"),
    "write by the system call": _WRITE.format("os.write(os.open('FOLDER/planted', os.O_CREAT | os.O_WRONLY), b'x')"),
    "overwrite": _WRITE.format("pathlib.Path('FOLDER/victim').write_text('gone')"),
    "append": _WRITE.format("open('FOLDER/victim', 'a').write('more')"),
    "truncate": _WRITE.format("os.truncate('FOLDER/victim', 0)"),
    "delete": _WRITE.format("os.unlink('FOLDER/victim')"),
    "rename": _WRITE.format("os.rename('FOLDER/victim', 'FOLDER/planted')"),
    "make a folder": _WRITE.format("os.mkdir('FOLDER/planted')"),
    "symbolic link out": _WRITE.format("os.symlink('FOLDER/victim', 'link'); open('link', 'w').write('gone')"),
    "hard link out": _WRITE.format("os.link('FOLDER/victim', 'link'); open('link', 'w').write('gone')"),
    "change rights": _WRITE.format("os.chmod('FOLDER/victim', 0o777)"),
    "change times": _WRITE.format("os.utime('FOLDER/victim', (1, 1))"),
    "device file": _WRITE.format("import stat; os.mknod('FOLDER/planted', stat.S_IFIFO | 0o666)"),
    "up from the scratch folder": _WRITE.format("open('../' * 12 + 'FOLDER/planted', 'w').write('x')"),
    "temporary file elsewhere": "import tempfile\ntempfile.NamedTemporaryFile(dir='FOLDER', prefix='planted', delete=False)",
    "database": "import sqlite3\nsqlite3.connect('FOLDER/planted').execute('create table t(x)')",
    "shelf": "import shelve\nshelve.open('FOLDER/planted')['x'] = 1",
    "log file": "import logging\nlogging.FileHandler('FOLDER/planted').emit(logging.makeLogRecord({}))",
    "C library": "import ctypes\nc = ctypes.CDLL(None)\nc.fputs(b'x', c.fopen(b'FOLDER/planted', b'w'))",
    "byte code into the library": "import os, py_compile\npy_compile.compile(os.__file__, 'FOLDER/planted')",
    "a module of the library": "import os\nopen(os.path.join(os.path.dirname(os.__file__), 'planted.py'), 'w').write('x')",
    "shared memory folder": "open('/dev/shm/planted', 'w').write('x')",
    "temporary folder": "open('/tmp/planted-gpt4jax', 'w').write('x')",
    "home": "import os\nopen(os.path.expanduser('~/planted-gpt4jax'), 'w').write('x')",
    "disk by its device": "open('/dev/vda', 'r+b').write(b'x')",
    "fill the scratch folder": "for i in range(10**6):\n    open(f'f{i}', 'wb').write(b'x' * 2**20)",
    "a file without end": "f = open('f', 'wb')\nwhile True:\n    f.write(b'x' * 2**20)",
    "files without end": "i = 0\nwhile True:\n    i += 1\n    open(f'f{i}', 'w')",
    # Reading.
    "read a secret file": "print(open('FOLDER/victim').read())",
    "read by mapping": "import mmap, os\nprint(mmap.mmap(os.open('FOLDER/victim', 0), 0, prot=mmap.PROT_READ)[:])",
    "list the folder": "import os\nprint(os.listdir('FOLDER'))\nprint(open('FOLDER/' + os.listdir('FOLDER')[0]).read())",
    "environment": "import os\nprint(dict(os.environ), os.popen)",
    "parent's environment": "print(open('/proc/PARENT/environ', 'rb').read())",
    "parent's command line": "print(open('/proc/PARENT/cmdline').read())",
    "parent's memory": "f = open('/proc/PARENT/mem', 'rb')\nprint(f.read(99))",
    "parent's files": "import os\nfor n in os.listdir('/proc/PARENT/fd'):\n    print(os.readlink(f'/proc/PARENT/fd/{n}'))",
    "all environments": "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n    print(open(p, 'rb').read())",
    "own C environment": "import ctypes\nprint(ctypes.string_at(ctypes.c_void_p.in_dll(ctypes.CDLL(None), 'environ').value, 4096))",
    "reading the parent by system call": _SYSCALL.format("310, PARENT, 0, 0, 0, 0, 0"),
    "writing the parent by system call": _SYSCALL.format("311, PARENT, 0, 0, 0, 0, 0"),
    "tracing the parent": _SYSCALL.format("101, 16, PARENT, 0, 0"),
    "the parent's open files": _SYSCALL.format("438, 3, 0, 0"),
    "keys of the kernel": _SYSCALL.format("250, 0, -3, 1, 0, 0"),
    "kernel log": _SYSCALL.format("103, 3, ctypes.create_string_buffer(999), 999"),
    "by file handle": _SYSCALL.format("304, -100, ctypes.create_string_buffer(99), 0"),
    # Processes.
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "fork that stays": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)  # planted\n    os._exit(0)",
    "thread bomb": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
    "shell": "import os\nprint(os.system('touch FOLDER/planted'))",
    "pipe from a shell": "import os\nprint(os.popen('cat FOLDER/victim').read())",
    "subprocess": "import subprocess\nprint(subprocess.check_output(['cat', 'FOLDER/victim']))",
    "spawn": "import os\nos.posix_spawn('/bin/sh', ['sh', '-c', 'touch FOLDER/planted'], {})",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Pool(2).map(print, range(9))",
    "become another program": "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch FOLDER/planted'])",
    "clone by its number": _SYSCALL.format("56, 17, 0, 0, 0, 0"),
    "clone3": _SYSCALL.format("435, ctypes.create_string_buffer(88), 88"),
    "vfork": _SYSCALL.format("58"),
    "execveat": _SYSCALL.format("322, -100, b'/bin/sh', 0, 0, 0"),
    "a program in memory": _SYSCALL.format("319, b'planted', 0"),
    "pseudo-terminal": "import pty\npty.spawn(['sh', '-c', 'touch FOLDER/planted'])",
    # Signals and the machine.
    "kill the parent": "import os\nos.kill(PARENT, 9)",
    "kill the forker": "import os\nos.kill(os.getppid(), 9)",
    "kill all": "import os\nos.kill(-1, 9)",
    "kill the group": "import os\nos.killpg(0, 9)",
    "stop itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "signal by a process handle": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(PARENT), 9)",
    "signal by a pipe's readiness": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)\nos.write(w, b'x')\nopen('FOLDER/planted', 'w')"
    ),
    "queue a signal": _SYSCALL.format("129, PARENT, 9, 0"),
    "become root": "import os\nos.setuid(0)\nopen('FOLDER/planted', 'w')",
    "new namespaces": _SYSCALL.format("272, 0x10000000 | 0x20000"),
    "mount": _SYSCALL.format("165, b'none', b'FOLDER', b'tmpfs', 0, 0"),
    "change the root": "import os\nos.chroot('/')",
    "load a module": _SYSCALL.format("313, 0, b'', 0"),
    "programs in the kernel": _SYSCALL.format("321, 5, 0, 0"),
    "performance counters": _SYSCALL.format("298, 0, 0, -1, -1, 0"),
    "page faults in user space": _SYSCALL.format("323, 0"),
    "reboot": _SYSCALL.format("169, 0xfee1dead, 672274793, 0x1234567, 0"),
    "raise the limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))\nwhile True: pass",
    "shared memory segment": _SYSCALL.format("29, 77, 4096, 0o1666"),
    "message queue": _SYSCALL.format("240, b'planted', 0o102, 0o666, 0"),
    "32-bit system call": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 99, prot=7)\n"
        "m.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
        "print('SECRET' if ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))() > 0 else '')"
    ),
    # Resources.
    "infinite loop": "while True:\n    pass",
    "sleep": "import time\ntime.sleep(60)",
    "wait for ever": "import select, os\nselect.select([os.pipe()[0]], [], [])",
    "a loop that ignores signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\nwhile True: pass",
    "memory": "x = []\nwhile True:\n    x.append(bytearray(2**24))",
    "a huge object": "x = 'x' * 2**36",
    "mapped memory": "import mmap\nx = [mmap.mmap(-1, 2**30) for _ in range(999)]",
    "a huge power": "x = 9 ** 9 ** 9",
    "a regular expression": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f() + f()\nf()",
    "output flood": "while True:\n    print('x' * 2**16)",
    "flood of every file": "import os\nwhile True:\n    for n in range(64):\n        try: os.write(n, b'x' * 4096)\n        except OSError: pass",
    "close every file": "import os\nos.closerange(0, 256)\nopen('FOLDER/planted', 'w')",
    "crash": "import ctypes\nctypes.string_at(1)",
}  # fmt: skip

# Bodies of `def answer(n)`, whose test compares it with a secret function of n.
FAKES: dict[str, str] = {
    "exit 0": "import os; os._exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "raise SystemExit": "raise SystemExit(0)",
    "raise KeyboardInterrupt": "raise KeyboardInterrupt",
    "raise StopIteration": "raise StopIteration",
    "raise GeneratorExit": "raise GeneratorExit",
    "equal to everything": "return type('E', (), {'__eq__': lambda s, o: True, '__ne__': lambda s, o: False})()",
    "an int equal to everything": "return type('I', (int,), {'__eq__': lambda s, o: True, '__hash__': int.__hash__})(1)",
    "a str equal to everything": "return type('S', (str,), {'__eq__': lambda s, o: True, '__hash__': str.__hash__})('')",
    "a float equal to everything": "return type('F', (float,), {'__eq__': lambda s, o: True, '__sub__': lambda s, o: 0.0})(1)",
    "a list equal to everything": "return type('L', (list,), {'__eq__': lambda s, o: True})()",
    "nan": "return float('nan')",
    "infinity": "return float('inf')",
    "a generator": "yield n",
    "a lazy object": "return type('R', (), {'__reduce__': lambda s: (eval, ('1',))})()",
    "a pickle": "import pickle; return pickle.dumps(print)",
    "a huge result": "return 'x' * 2**27",
    "a result without end": "a = []; a.append(a); return a",
    "a deep result": "a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "patch AssertionError": "import builtins; builtins.AssertionError = type('A', (Exception,), {}); return 0",
    "patch isinstance and abs": "import builtins; builtins.abs = lambda x: 0; builtins.isinstance = lambda *a: True; return 0",
    "patch math.isclose": "import math; math.isclose = lambda *a, **k: True; return 0",
    "patch json": "import json; json.dumps = lambda *a, **k: '\"passed\"'; json.loads = lambda *a: True; return 0",
    "redefine check": "globals()['check'] = lambda c: None; import __main__; __main__.check = lambda c: None; return 0",
    "all modules' check": "import sys\n    for m in list(sys.modules.values()):\n        try: m.check = lambda *a: None\n        except Exception: pass\n    return 0",
    "walk the frames": "import sys\n    f = sys._getframe()\n    while f:\n        f.f_locals.update(calls=1, said='passed'); f.f_globals.update(verdict=True); f = f.f_back\n    return 0",
    "walk the heap": "import gc\n    for o in gc.get_objects():\n        if isinstance(o, dict):\n            try: o['passed'] = True; o['reason'] = 'passed'\n            except Exception: pass\n    return 0",
    "say passed on every file": "import os\n    for k in range(64):\n        try: os.write(k, b'\"passed\"\\n')\n        except OSError: pass\n    return 0",
    "answer before it is asked": "import os\n    for k in range(3, 64):\n        try: os.write(k, b'{\"int\": \"0x1\"}\\n' * 999)\n        except OSError: pass\n    return 0",
    "say nonsense on every file": "import os\n    for k in range(64):\n        try: os.write(k, b'{}}{\\n\\xff\\n' * 99)\n        except OSError: pass\n    return 0",
    "close every file": "import os; os.closerange(0, 256); return 0",
    "at exit": "import atexit, os; atexit.register(os._exit, 0); return 0",
    "trace": "import sys; sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None); return 0",
    "import hook": "import sys; sys.meta_path.insert(0, type('H', (), {'find_spec': lambda *a: None})()); return 0",
    "subclass walk": "return [c for c in object.__subclasses__() if 'wrap_close' in c.__name__][0].__init__.__globals__['system']('true')",
    "poke an integer": "import ctypes\n    for k in range(257): ctypes.memmove(id(k) + 24, id(1) + 24, 4)\n    return 1",
    "poke a constant": "import ctypes; ctypes.memset(id(True) + 24, 0, 4); return True",
    "read the test": "import inspect, sys; return inspect.getsource(sys.modules['__main__'])",
    "an error that is not one": "raise type('AssertionError', (Exception,), {'__name__': 'passed'})('passed')",
    "change the argument": "n = 0; return n",
}  # fmt: skip

HARMLESS = (
    "tcp", "udp", "local socket", "url", "write a file", "overwrite", "delete", "read a secret file", "environment",
    "shell", "subprocess", "fork that stays", "make a folder", "database", "rename", "C library",
)  # fmt: skip


class Observer:
    """A folder, a secret, and ports, and what has happened to them."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.secret = folder, f"secret-{secrets.token_hex(8)}"
        self.port, self.local = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port.getsockname()[1]))
        self.local.bind(str(folder.parent / "socket"))
        self.local.listen()
        for one in (self.port, self.udp, self.local):
            one.setblocking(False)
        os.environ["GPT4JAX_TEST_SECRET"] = self.secret
        self.reset()

    def fill(self, source: str) -> str:
        """The source with this observer's places in it."""
        places = {
            "FOLDER": str(self.folder), "PORT": str(self.port.getsockname()[1]), "PARENT": str(os.getpid()),
            "SOCKET": str(self.folder.parent / "socket"), "SECRET": self.secret,
        }  # fmt: skip
        return re.sub("|".join(places), lambda found: places[found[0]], source)

    def reset(self) -> None:
        """All as it was."""
        subprocess.run(["pkill", "-f", "# planted"], check=False)
        for path in self.folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        (self.folder / "victim").write_text(self.secret)
        os.utime(self.folder / "victim", (10**9, 10**9))
        self.was = self._state()
        self.seen()

    def _state(self) -> list:
        files = [(path.name, path.stat().st_mode, path.stat().st_mtime) for path in sorted(self.folder.iterdir())]
        places = ["/tmp/planted-gpt4jax", "/dev/shm/planted", os.path.expanduser("~/planted-gpt4jax")]
        library = pathlib.Path(os.__file__).parent / "planted.py"
        return [files, [os.path.exists(place) for place in (*places, library)]]

    def seen(self, words: str = "") -> list[str]:
        """What an attack has done."""
        found = ["the secret got out"] if self.secret in words else []
        if self._state() != self.was:
            found.append("files changed")
        for name, one in (("a connection", self.port), ("a local connection", self.local)):
            with contextlib.suppress(BlockingIOError):
                one.accept()[0].close()
                found.append(name)
        with contextlib.suppress(BlockingIOError):
            self.udp.recv(99)
            found.append("a packet")
        left = subprocess.run(["pgrep", "-f", "# planted"], capture_output=True, text=True, check=False).stdout.split()
        return found + (["a process is left"] if left else [])


def problem(seed: int) -> tuple[Problem, str]:
    """A problem whose answers can't be guessed, and its solution."""
    a, b = random.Random(seed).sample(range(10**6), 2)
    test = f"""
    def check(candidate):
        for n in range(20):
            assert candidate(n) == (n * {a} + {b}) % 1009 and abs(candidate(n) - (n * {a} + {b}) % 1009) == 0
    """
    prompt = 'def answer(n):\n    """A secret function."""\n'
    return Problem(prompt, "answer", textwrap.dedent(test)), f"    return (n * {a} + {b}) % 1009\n"


def attempts(names: list[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Runs attacks (None: all) as programs and as solutions: each one's name, and what it achieved."""
    limits = Limits(seconds=1.5, cpu_seconds=1)
    with tempfile.TemporaryDirectory() as home, Sandbox(limits, workers=1) as sandbox:
        folder = pathlib.Path(home) / "folder"
        folder.mkdir()
        observer = Observer(folder)
        for number, (name, source) in enumerate((ATTACKS | {f"fake: {k}": v for k, v in FAKES.items()}).items()):
            if names is not None and name not in names:
                continue
            asked, right = problem(number)
            observer.reset()
            started, achieved = time.monotonic(), []
            if name.startswith("fake: "):
                body = f"    {source}\n"
            else:
                program = observer.fill(source)
                ran = sandbox.run(program)
                achieved += observer.seen(ran.stdout + ran.stderr)
                body = f"    exec({program!r}, {{}})\n    return 0\n"
            verdict = sandbox.check(asked, body)
            achieved += observer.seen(verdict.reason) + (["a false pass"] if verdict.passed else [])
            if time.monotonic() - started > 2 * (limits.seconds + 1):
                achieved.append("time")
            if not sandbox.check(asked, right).passed:
                achieved.append("the sandbox is broken")
            yield name, achieved
        os.environ.pop("GPT4JAX_TEST_SECRET")


def unprotected(names: tuple[str, ...] = HARMLESS) -> Iterator[tuple[str, list[str]]]:
    """The same without a sandbox: what the observer sees of each."""
    with tempfile.TemporaryDirectory() as home:
        folder = pathlib.Path(home) / "folder"
        folder.mkdir()
        observer = Observer(folder)
        for name in names:
            observer.reset()
            command = [sys.executable, "-c", observer.fill(ATTACKS[name])]
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=False)
            yield name, observer.seen(done.stdout + done.stderr)
            observer.reset()
        os.environ.pop("GPT4JAX_TEST_SECRET")


def main() -> None:
    """Runs all and prints what got through."""
    results = list(attempts())
    for name, achieved in results:
        print(f"{name}: {', '.join(achieved) or 'nothing'}")
    false = sum("a false pass" in achieved for _, achieved in results)
    print(f"{len(results)} attacks: {sum(bool(a) for _, a in results) - false} escapes, {false} false passes")
    blind = [name for name, achieved in unprotected() if not achieved]
    print(
        f"without a sandbox {len(HARMLESS) - len(blind)} of {len(HARMLESS)} harmless ones are seen to succeed {blind}"
    )
