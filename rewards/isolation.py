"""A script: judge programs one after the other, each in a process that is shut in. Linux; standard library only.

``raftdiff.rewards.sandbox`` starts it as ``python isolation.py SETTINGS``, SETTINGS in JSON, with the tasks in the file
that is its standard input. Starting Python takes longer than a small program does, so it is done once: a program's
process is a copy of this one. Of no program does anything reach another: this process reads nothing of a task but where
it lies in the file, and listens to each copy through a pipe of its own; each copy has its own view of processes and of
shared memory, its own work folder, its own limits, and has ended before the next begins. What the copies said goes to
standard output, a line of JSON each.

What is shut, in order (Linux 5.12 or newer, x86_64 or aarch64):
- namespaces of its own: no network interface, no sight of other processes, no shared memory with them;
- a root of its own, in memory: of the machine's files only those that Python starts from, read-only and without device
  nodes; of its devices null, zero and urandom; an empty /proc; and a small file system in memory as work folder. No
  terminal, pipe or socket of the machine has a name in there;
- an ordinary user without a privilege, so that it cannot undo any of it: started by root, the user nobody; else the
  user itself, in a user namespace;
- limits: CPU seconds, address space, file size, open files, no core dumps;
- a system call filter: no new process (threads are allowed), no living on without its parent, no socket (with the
  network on, internet ones alone), no signal to another process, no tracing, no new namespace, no memory beside the
  address space, no io_uring.
"""

import ctypes
import importlib.util
import json
import os
import platform
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 13, 1 << 14, 1 << 18
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_SETATTR, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 442, 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
EPERM, ENOSYS = 1, 38

INSIDE_ID = 1000
"""The user that the program is in a user namespace: not 0, so that it loses every capability when it is started."""
NOBODY = 65534
"""The user and group that it is where root started it."""
CAPABILITY_VERSION = 0x20080522
CAN_BECOME_NOBODY = 1 << 6 | 1 << 7 | 1 << 18 | 1 << 21
"""Capabilities: to change the group and the user, to change the root, and to mount."""
DEVICES = ("null", "zero", "urandom")
INTERNET = (2, 10, 16)
"""Kinds of sockets that the network needs: IPv4, IPv6, and netlink, by which names are looked up."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> the kernel's name for its system call numbers."""
CALLS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"clone": 56, "prctl": 157, "socket": 41}
    | {"fork": 57, "vfork": 58, "unshare": 272, "setns": 308}
    | {"ptrace": 101, "process_vm_writev": 311, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129}
    | {"memfd_create": 319, "shmget": 29, "msgget": 68},
    "aarch64": {"clone": 220, "prctl": 167, "socket": 198}
    | {"unshare": 97, "setns": 268}
    | {"ptrace": 117, "process_vm_writev": 271, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138}
    | {"memfd_create": 279, "shmget": 194, "msgget": 186},
}
"""What the filter looks at. The last line of each: memory that the limit on address space does not count."""
COMMON_CALLS = {"io_uring_setup": 425, "pidfd_send_signal": 424}
CLONE3 = 435

BPF_LOAD, BPF_EQUAL, BPF_AT_LEAST, BPF_ANY_BIT, BPF_RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
AT_CALL, AT_MACHINE, AT_FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; both machines are little-endian."""

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    _die_with_parent()
    harness, as_root, failed = _module(settings["harness"]), False, ""
    sys.argv = [settings["harness"]]
    try:
        if settings["isolate"]:
            as_root = can_become_nobody()
            own_namespaces(network=settings["network"], as_root=as_root)
            own_files(Path.cwd(), settings["files"])
    except OSError as error:
        failed = f"!{error}"
    for start, length in settings["tasks"]:
        said, timed_out = (failed.encode(), False) if failed else _copied(settings, harness, as_root, (start, length))
        told = {"said": said.decode(errors="replace"), "timed_out": timed_out}
        sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
        sys.stdout.buffer.flush()


def _copied(settings: Mapping[str, Any], harness: Any, as_root: bool, task: tuple[int, int]) -> tuple[bytes, bool]:
    """What a copy of this process said that judged the task at (start, length), and whether it had to be ended."""
    own = None
    try:
        own = None if settings["isolate"] else tempfile.mkdtemp(dir=".")  # else the folder is in memory
        reading, writing = os.pipe()
        child = os.fork()
    except OSError as error:  # a full disk, or no more processes; the pipe ends with this one
        if own:
            shutil.rmtree(own, ignore_errors=True)
        return f"!{error}".encode(), False
    if not child:
        os.dup2(writing, 1)
        os.closerange(3, 64)  # with the file of the tasks, which is 0, all there was
        _become(settings, harness, as_root, task, own or ".")
    os.close(writing)
    found = listen(reading, child, settings["seconds"], settings["longest"])
    os.close(reading)
    if own:
        shutil.rmtree(own, ignore_errors=True)
    return found


def _module(path: str) -> Any:
    """Read as a file: as a package it would want all that this one's user has installed."""
    spec = importlib.util.spec_from_file_location("harness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _become(settings: Mapping[str, Any], harness: Any, as_root: bool, task: tuple[int, int], place: str) -> None:
    """Shut this copy in and judge the task there; it does not return. Whatever cannot be shut is said as ``!reason``,
    and the program is not run."""
    try:
        os.chdir(place)
        _shut_in(settings, as_root)
        given = os.pread(0, task[1], task[0])
    except OSError as error:
        os.write(1, f"!{error}".encode())
        os._exit(1)
    try:
        harness.judge(given)
    finally:
        os._exit(0)  # without waiting for threads that the program left behind


def _shut_in(settings: Mapping[str, Any], as_root: bool) -> None:
    isolate, network = settings["isolate"], settings["network"]
    _die_with_parent()
    if isolate:
        _call("unshare", libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC))
        own_folder(Path.cwd(), settings["folder_mb"])
        child = os.fork()  # the first process of the new process namespace: when it ends, all inside end
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        if as_root:
            become_nobody()
        drop_capabilities()
        _die_with_parent()
    filtered = isolate or (sys.platform == "linux" and platform.machine() in CALLS)
    limit(settings["limits"] if filtered else {**settings["limits"], "NPROC": 64})
    if filtered:
        forbid_calls(network=network)


def listen(reading: int, child: int, seconds: float, longest: int) -> tuple[bytes, bool]:
    """What the ``child`` writes until it ends, and True if it had to be ended. It takes everything inside with it."""
    deadline, said, ended = time.monotonic() + seconds, b"", False
    while len(said) < longest and select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (more := os.read(reading, 2**16)):
            break
        said += more
    while len(said) < longest and not (ended := os.waitpid(child, os.WNOHANG)[0] == child):  # else it only floods
        if time.monotonic() > deadline:
            break
        time.sleep(0.0005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return said, not ended and len(said) < longest


def can_become_nobody() -> bool:
    """Whether this is a root that can do without a user namespace; that of a container often cannot."""
    if os.geteuid() != 0:
        return False
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    maps = [Path(f"/proc/self/{kind}_map").read_text().splitlines() for kind in ("uid", "gid")]
    known = all(any(int(i) <= NOBODY < int(i) + int(n) for i, _, n in map(str.split, lines)) for lines in maps)
    return known and capabilities & CAN_BECOME_NOBODY == CAN_BECOME_NOBODY


def own_namespaces(*, network: bool, as_root: bool) -> None:
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (0 if network else CLONE_NEWNET)
    _call("unshare", libc.unshare(flags | (0 if as_root else CLONE_NEWUSER)))
    if not as_root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{INSIDE_ID} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{INSIDE_ID} {group} 1")


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """All of this process's, as becoming another program would."""
    header, none = struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)
    _call("capset", libc.capset(header, none))


def own_files(place: Path, files: Sequence[str]) -> None:
    """Make a root at ``place`` that holds the named ``files`` and folders alone, and an empty folder of the same name
    as ``place``; move into it."""
    os.umask(0o022)
    work = place / place.relative_to("/")
    _mount("none", "/", MS_REC | MS_PRIVATE)  # what is mounted from here on, nobody else sees
    _mount("tmpfs", str(place), MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in (place / "proc", place / "dev", work):
        folder.mkdir(parents=True)
    bound: list[Path] = []
    for path in sorted({Path(os.path.normpath(file)) for file in files}):  # a folder before what is in it
        if path.exists() and not any(path.is_relative_to(one) for one in bound):
            _bind(path, place / path.relative_to("/"))
            bound.append(path)
    for name in DEVICES:
        (place / "dev" / name).touch()
    # struct mount_attr: set, clear, propagation, user namespace
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    _call("mount_setattr", libc.syscall(MOUNT_SETATTR, AT_FDCWD, bytes(place), AT_RECURSIVE, attributes, size))
    for name in DEVICES:  # after it, or they would be no devices
        _bind(Path("/dev") / name, place / "dev" / name)
    os.chdir(place)
    _mount(".", "/", MS_MOVE)
    os.chroot(".")
    os.chdir(place)


def own_folder(place: Path, megabytes: int) -> None:
    """An empty work folder in memory at ``place``; move into it. Needs a mount namespace that is nobody else's."""
    _mount("tmpfs", str(place), MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={megabytes}m,nr_inodes=1024,mode=777")
    os.chdir(place)


def _bind(source: Path, place: Path) -> None:
    """``source``, links resolved, at ``place``, with what is mounted below it."""
    folder = place if source.is_dir() else place.parent
    folder.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.touch()
    _mount(str(source.resolve()), str(place), MS_BIND | MS_REC)


def _mount(source: str, place: str, flags: int, options: str = "") -> None:
    """A file system in memory if ``source`` is tmpfs, else a change or a copy of one that is mounted."""
    kind = b"tmpfs" if source == "tmpfs" else None
    result = libc.mount(os.fsencode(source), os.fsencode(place), kind, ctypes.c_ulong(flags), options.encode() or None)
    _call(f"mount {place}", result)


def limit(limits: Mapping[str, int]) -> None:
    """Names of ``resource`` without RLIMIT_, soft and hard alike. A lower limit that already holds stays."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (lowest, lowest))
        except ValueError as error:
            if sys.platform == "linux":  # macOS does not know all of them
                raise OSError(f"the limit {name} cannot be set: {error}") from None


def forbid_calls(*, network: bool) -> None:
    """Install the system call filter; it holds for every thread and cannot be taken off."""
    if platform.machine() not in CALLS:
        raise OSError(f"no system call filter is known for {platform.machine()}")
    program = b"".join(struct.pack("HBBI", *step) for step in call_filter(platform.machine(), network=network))
    code = ctypes.create_string_buffer(program)
    # struct sock_fprog: the number of steps, padding, a pointer to them
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    unused = [ctypes.c_ulong(0)] * 3
    _call("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *unused))
    _call("seccomp", libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), fprog, *unused[:2]))


def call_filter(machine: str, *, network: bool) -> Sequence[tuple[int, int, int, int]]:
    """Steps (code, jump if true, jump if false, value) of the filter in classic BPF."""
    calls = CALLS[machine]
    steps = [
        (BPF_LOAD, 0, 0, AT_MACHINE),
        (BPF_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (BPF_RETURN, 0, 0, KILL),  # a 32-bit program has other numbers
        (BPF_LOAD, 0, 0, AT_CALL),
    ]
    if machine == "x86_64":  # and so has the x32 interface
        steps += [(BPF_AT_LEAST, 0, 1, 0x40000000), (BPF_RETURN, 0, 0, KILL)]
    # glibc falls back from clone3, whose flags a filter cannot see, to clone
    steps += [(BPF_EQUAL, 0, 1, CLONE3), (BPF_RETURN, 0, 0, REFUSE | ENOSYS)]
    looked_into = {"clone", "prctl", "socket"} if network else {"clone", "prctl"}
    for number in [number for name, number in {**calls, **COMMON_CALLS}.items() if name not in looked_into]:
        steps += [(BPF_EQUAL, 0, 1, number), (BPF_RETURN, 0, 0, REFUSE | EPERM)]
    if network:
        steps += [(BPF_EQUAL, 0, len(INTERNET) + 3, calls["socket"]), (BPF_LOAD, 0, 0, AT_FIRST_ARGUMENT)]
        steps += [(BPF_EQUAL, len(INTERNET) - at, 0, kind) for at, kind in enumerate(INTERNET)]
        steps += [(BPF_RETURN, 0, 0, REFUSE | EPERM), (BPF_RETURN, 0, 0, ALLOW)]
    steps += [
        (BPF_EQUAL, 0, 4, calls["prctl"]),
        (BPF_LOAD, 0, 0, AT_FIRST_ARGUMENT),
        (BPF_EQUAL, 0, 1, PR_SET_PDEATHSIG),
        (BPF_RETURN, 0, 0, REFUSE | EPERM),
        (BPF_RETURN, 0, 0, ALLOW),
    ]
    steps += [
        (BPF_EQUAL, 0, 3, calls["clone"]),
        (BPF_LOAD, 0, 0, AT_FIRST_ARGUMENT),
        (BPF_ANY_BIT, 1, 0, CLONE_THREAD),
        (BPF_RETURN, 0, 0, REFUSE | EPERM),
        (BPF_RETURN, 0, 0, ALLOW),
    ]
    return steps


def _die_with_parent() -> None:
    if sys.platform == "linux":
        unused: list[Any] = [ctypes.c_ulong(0)] * 3
        _call("pdeathsig", libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *unused))


def _call(name: str, result: int) -> None:
    if result != 0:
        raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
