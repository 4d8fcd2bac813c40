"""What the kernel keeps a program from: files by Landlock, all else by a list of permitted system calls.

Standard library only, and no imports from the package: `sandbox_worker.py` runs it in a bare interpreter.
Landlock: Documentation/userspace-api/landlock.rst of Linux; seccomp: .../seccomp_filter.rst.
"""

import ctypes
import os
import platform
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_NEW_PRIVS, _SET_DEATH_SIGNAL, _SET_SECCOMP, _SECCOMP_FILTER = 38, 1, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_NEW_USER, _NEW_MOUNT, _NEW_NET, _NEW_IPC = 0x10000000, 0x00020000, 0x40000000, 0x08000000
_AUDIT_X86_64 = 0xC000003E
_ALLOW, _REFUSE_EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_TCGETS = 0x5401

# Landlock's rights over files, by the version of its interface that brought them.
_EXECUTE, _WRITE, _READ, _READ_FOLDER = 1, 2, 4, 8
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}

# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: with F_SETOWN, F_SETSIG and F_SETFL a file's readiness is any
# signal to any process.
_FCNTL, _FCNTL_COMMANDS = 72, (0, 1, 2, 3, 1030)

# What a Python program that computes calls, on x86-64. There is no fork, no exec, no socket, no signal to anybody,
# no memory of others, no mount, no new namespace, and nothing that was invented after this list.
_CALLS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24,
    "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63,
    "fsync": 74, "ftruncate": 77, "getcwd": 79, "chdir": 80, "rename": 82, "mkdir": 83, "rmdir": 84,
    "unlink": 87, "readlink": 89, "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99,
    "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getgroups": 115,
    "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "getdents64": 217,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "openat": 257, "mkdirat": 258,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267, "faccessat": 269, "pselect6": 270,
    "ppoll": 271, "set_robust_list": 273, "dup3": 292, "pipe2": 293, "preadv": 295, "pwritev": 296, "getrandom": 318,
    "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip


class UnavailableError(Exception):
    """Something that isolation needs is not on this machine; says what."""


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise UnavailableError(f"{what} failed: {os.strerror(error)}")
    return result


def own_namespaces(scratch: str, megabytes: int) -> bool:
    """No network of the machine's, and `scratch` in memory, of that size at most; False: not permitted here."""
    user, group = os.geteuid(), os.getegid()
    if _LIBC.unshare(_NEW_USER | _NEW_MOUNT | _NEW_NET | _NEW_IPC) < 0:
        return False
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    options = f"size={megabytes}m,nr_inodes=256,mode=700".encode()
    _check(_LIBC.mount(b"none", b"/", None, 0x44000, None), "making mounts private")  # MS_REC | MS_PRIVATE
    _check(_LIBC.mount(b"tmpfs", scratch.encode(), b"tmpfs", 0x6, options), "mounting memory")  # MS_NOSUID | MS_NODEV
    return True


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """From now on, for good and for all children: no file but below these paths, and nothing to be executed.

    Raises:
        UnavailableError: a kernel without Landlock.
    """
    abi = _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    _check(abi, "Landlock (Linux 5.13 or newer, switched on)")
    rights = sum(bits for version, bits in _RIGHTS_BY_ABI.items() if version <= abi)
    ruleset = struct.pack("=Q", rights)
    fd = _check(_LIBC.syscall(_LANDLOCK_CREATE, ruleset, ctypes.c_size_t(len(ruleset)), 0), "a Landlock ruleset")
    for paths, folder_rights in ((readable, _READ | _READ_FOLDER), (writable, rights & ~_EXECUTE)):
        for path in paths:
            allowed = folder_rights if os.path.isdir(path) else folder_rights & (_READ | _WRITE)
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", allowed, parent)
            _check(_LIBC.syscall(_LANDLOCK_ADD, fd, 1, rule, 0), f"the Landlock rule for {path}")
            os.close(parent)
    no_new_privileges()
    _check(_LIBC.syscall(_LANDLOCK_RESTRICT, fd, 0), "restriction by Landlock")
    os.close(fd)


def no_new_privileges() -> None:
    """For good: nothing that is executed gains rights. Both of the others need it."""
    _check(_LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def die_with_parent() -> None:
    """The kernel kills this process when the thread that made it ends."""
    _check(_LIBC.prctl(_SET_DEATH_SIGNAL, 9, 0, 0, 0), "the parent-death signal")


def restrict_calls() -> None:
    """From now on, for good: system calls of _CALLS only, `fcntl`, `ioctl` and `prlimit64` in part; others give EPERM.

    Raises:
        UnavailableError: another machine than x86-64, or a kernel without seccomp.
    """
    if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        raise UnavailableError(f"the list of system calls is for x86-64 Linux, and this is {platform.machine()}")
    load_call, load_arch, load_second = (0x20, 0, 0, 0), (0x20, 0, 0, 4), (0x20, 0, 0, 24)
    program = [load_arch, (0x15, 1, 0, _AUDIT_X86_64), (0x06, 0, 0, _KILL), load_call]
    # The x32 calls have numbers of their own, above all of these: they are refused with the rest.
    for number in sorted(_CALLS.values()):
        program += [(0x15, 0, 1, number), (0x06, 0, 0, _ALLOW)]
    commands = [one for command in _FCNTL_COMMANDS for one in ((0x15, 0, 1, command), (0x06, 0, 0, _ALLOW))]
    program += [(0x15, 0, len(commands) + 2, _FCNTL), load_second, *commands, (0x06, 0, 0, _REFUSE_EPERM)]
    # ioctl(fd, TCGETS): is it a terminal? prlimit64(0, ..., NULL): what is the limit?
    program += [(0x15, 0, 3, 16), load_second, (0x15, 0, 1, _TCGETS), (0x06, 0, 0, _ALLOW), load_call]
    program += [(0x15, 0, 5, 302), (0x20, 0, 0, 32), (0x15, 0, 3, 0), (0x20, 0, 0, 36), (0x15, 0, 1, 0)]
    program += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _REFUSE_EPERM)]
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    no_new_privileges()
    _check(_LIBC.prctl(_SET_SECCOMP, _SECCOMP_FILTER, header, 0, 0), "the system-call filter (seccomp)")
