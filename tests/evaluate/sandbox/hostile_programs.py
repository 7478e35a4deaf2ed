"""Programs that try to escape, to stall the run or to pass without being right.

Three kinds. An ``escape`` defines ``attack()``, which returns True where it reached what it should
not: the test that "passes" is the escape. A ``bomb`` uses up something; its ``attack()`` returns
True where no limit stopped it. A ``cheat`` should pass ``CHEATED`` without computing anything.

``{marker}`` is a word that no other file has in its name, ``{canary}`` a file of the host with
``SECRET`` in it, ``{pid}`` a process of the host that may be signalled, ``{port}`` a port of the
host that listens, ``{socket}`` a Unix socket that listens.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent, indent
from typing import Literal

SECRET = "the-secret-of-the-host"
CHEATED = (
    "assert add(2, 3) == 5\nassert add(-1, 1) == 0\nassert [add(i, i) for i in range(9)][8] == 16"
)
ESCAPED = "assert attack() is True"


@dataclass(frozen=True)
class Hostile:
    """One program; ``unconfined`` says that it reaches its aim where nothing confines it."""

    name: str
    kind: Literal["escape", "bomb", "cheat"]
    what: str
    code: str
    tests: str
    unconfined: bool = False

    def filled(self, host: dict[str, str]) -> str:
        """The code with the host's words in place of ``{marker}`` and the others."""
        code = self.code
        for word, value in host.items():
            code = code.replace("{" + word + "}", value)
        return code


def _attack(
    name: str,
    kind: Literal["escape", "bomb"],
    what: str,
    body: str,
    unconfined: bool = False,
    tests: str = ESCAPED,
) -> Hostile:
    code = f"def attack():\n{indent(dedent(body).strip(), '    ')}\n"
    return Hostile(name, kind, what, code, tests, unconfined)


def _cheat(name: str, what: str, code: str) -> Hostile:
    return Hostile(name, "cheat", what, dedent(code).strip() + "\n", CHEATED)


FILES = [
    _attack(
        "read-canary",
        "escape",
        "reads a file of the host",
        """
        return "secret" in open("{canary}").read()
    """,
        True,
    ),
    _attack(
        "delete-ledger",
        "escape",
        "deletes a file of the host",
        """
        import os
        os.remove("{canary}")
        return True
    """,
    ),
    _attack(
        "overwrite-ledger",
        "escape",
        "writes over a file of the host",
        """
        with open("{canary}", "a") as file:
            file.write("spoiled")
        return True
    """,
    ),
    _attack(
        "read-home",
        "escape",
        "lists home folders",
        """
        import os
        seen = [n for d in ("/root", "/home", os.path.expanduser("~root")) if os.path.isdir(d)
                for n in os.listdir(d) if n != ".pyenv"]
        return bool(seen)
    """,
    ),
    _attack(
        "read-passwd",
        "escape",
        "reads /etc",
        """
        return "root" in open("/etc/passwd").read()
    """,
        True,
    ),
    _attack(
        "write-root",
        "escape",
        "writes outside its scratch folder",
        """
        import os
        library = os.path.dirname(os.__file__)
        for folder in ("/", "/usr/lib", "/etc", "/var/tmp", "/dev", "/proc", library):
            try:
                with open(os.path.join(folder, "{marker}"), "w") as file:
                    file.write("x")
                return True
            except OSError:
                pass
    """,
    ),
    _attack(
        "write-dev-shm-host",
        "escape",
        "leaves a file in memory that the host sees",
        """
        with open("/dev/shm/{marker}", "w") as file:
            file.write("x")
        return False
    """,
    ),
    _attack(
        "leave-file",
        "escape",
        "leaves a file in the temporary folder",
        """
        import tempfile
        open(tempfile.gettempdir() + "/{marker}", "w").write("x")
        return False
    """,
    ),
    _attack(
        "symlink",
        "escape",
        "reads through a symbolic link",
        """
        import os
        os.symlink("{canary}", "/tmp/link")
        return "secret" in open("/tmp/link").read()
    """,
    ),
    _attack(
        "hard-link",
        "escape",
        "reads through a hard link",
        """
        import os
        os.link("{canary}", "/tmp/link")
        return "secret" in open("/tmp/link").read()
    """,
    ),
    _attack(
        "dot-dot",
        "escape",
        "climbs out with ..",
        """
        return "secret" in open("../" * 30 + "{canary}").read()
    """,
        True,
    ),
    _attack(
        "proc-root",
        "escape",
        "goes through /proc to the root of another process",
        """
        import os
        for name in os.listdir("/proc"):
            for way in ("root", "cwd"):
                try:
                    if "secret" in open(f"/proc/{name}/{way}{canary}").read():
                        return True
                except OSError:
                    pass
    """,
    ),
    _attack(
        "device",
        "escape",
        "makes a device of the disk",
        """
        import os, stat
        for minor in range(2):
            os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(254, minor))
            return bool(open("/tmp/disk", "rb").read(512))
    """,
    ),
    _attack(
        "write-interpreter",
        "escape",
        "plants code in a module that others import",
        """
        import json
        open(json.__file__, "a").write("\\n# {marker}")
        return True
    """,
    ),
    _attack(
        "inherited-files",
        "escape",
        "uses files that were left open",
        """
        import os
        for number in range(3, 4096):
            try:
                os.fstat(number)
            except OSError:
                continue
            if number == 3:  # the channel on which it answers
                continue
            return True
    """,
    ),
]
SECRETS = [
    _attack(
        "own-environment",
        "escape",
        "reads its environment",
        """
        import os
        return any("secret" in value for value in os.environ.values())
    """,
    ),
    _attack(
        "parents-environment",
        "escape",
        "reads the environment of other processes",
        """
        import os
        for name in os.listdir("/proc"):
            try:
                if b"secret" in open(f"/proc/{name}/environ", "rb").read():
                    return True
            except OSError:
                pass
    """,
        True,
    ),
    _attack(
        "other-processes",
        "escape",
        "sees processes of the host",
        """
        import os
        os.kill({pid}, 0)
        return b"python" in open("/proc/{pid}/cmdline", "rb").read()
    """,
        True,
    ),
    _attack(
        "memory-of-parent",
        "escape",
        "reads another process's memory",
        """
        import os
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    open(f"/proc/{name}/mem", "rb").seek(1 << 20)
                    return True
                except OSError:
                    pass
    """,
    ),
    _attack(
        "tests-in-memory",
        "escape",
        "finds the tests among all objects",
        """
        import gc, sys
        words = "".join(["attack() ", "is T", "rue"])
        def told(each):
            return isinstance(each, (str, bytes)) and each is not words and words in str(each)
        for each in gc.get_objects():
            if any(told(inner) for inner in gc.get_referents(each)):
                return True
        frame = sys._getframe().f_back
        while frame:
            if any(told(value) for value in list(frame.f_locals.values())):
                return True
            frame = frame.f_back
    """,
    ),
    _attack(
        "core-pattern",
        "escape",
        "sets what the kernel runs on a crash",
        """
        open("/proc/sys/kernel/core_pattern", "w").write("|/tmp/{marker}")
        return True
    """,
    ),
]
PROCESSES = [
    _attack(
        "signal-parent",
        "escape",
        "signals a process of the host",
        """
        import os, signal
        os.kill({pid}, signal.SIGTERM)
        return True
    """,
        True,
    ),
    _attack(
        "signal-everyone",
        "escape",
        "kills every process it may",
        """
        import os, signal
        os.kill(-1, signal.SIGKILL)
        os.killpg(os.getppid() or 1, signal.SIGKILL)
        return False
    """,
    ),
    _attack(
        "ptrace",
        "escape",
        "traces its parent",
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.ptrace(16, os.getppid() or {pid}, 0, 0) == 0
    """,
    ),
    _attack(
        "process-vm",
        "escape",
        "copies memory of another process",
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        class Vector(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        here = ctypes.create_string_buffer(8)
        mine = Vector(ctypes.addressof(here), 8)
        at = ctypes.byref(mine)
        return libc.process_vm_readv(os.getppid() or {pid}, at, 1, at, 1, 0) > 0
    """,
    ),
    _attack(
        "daemon",
        "escape",
        "leaves a daemon behind",
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        return False
    """,
    ),
    _attack(
        "deaf-daemon",
        "escape",
        "leaves daemons that ignore every signal",
        """
        import os, signal, time
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                for number in range(1, 64):
                    try:
                        signal.signal(number, signal.SIG_IGN)
                    except (OSError, ValueError):
                        pass
                while True:
                    time.sleep(1)
        return False
    """,
    ),
    _attack(
        "shell",
        "escape",
        "starts a shell",
        """
        import os
        return os.system("true") == 0
    """,
        True,
    ),
    _attack(
        "interpreter",
        "escape",
        "starts a new interpreter",
        """
        import subprocess, sys
        return subprocess.run([sys.executable, "-c", ""]).returncode == 0
    """,
    ),
    _attack(
        "loader",
        "escape",
        "starts a program through the loader of shared libraries",
        """
        import glob, os
        for loader in glob.glob("/lib64/ld-linux*") + glob.glob("/lib/ld-linux*"):
            if os.fork() == 0:
                os.execv(loader, [loader, "--version"])
            if os.waitpid(-1, 0)[1] == 0:
                return True
    """,
    ),
    _attack(
        "become-root",
        "escape",
        "becomes root",
        """
        import os
        os.setuid(0)
        return os.geteuid() == 0
    """,
    ),
    _attack(
        "new-namespace",
        "escape",
        "makes itself root of a namespace",
        """
        import ctypes
        return ctypes.CDLL(None).unshare(0x10000000) == 0
    """,
        True,
    ),
    _attack(
        "clone-namespace",
        "escape",
        "the same through clone",
        """
        import ctypes, os
        libc = ctypes.CDLL(None)
        number = 56 if os.uname().machine == "x86_64" else 220
        child = libc.syscall(number, 0x10000000 | 17, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        return child > 0
    """,
        True,
    ),
    _attack(
        "unmount",
        "escape",
        "takes mounts off to see what they cover",
        """
        import ctypes
        libc = ctypes.CDLL(None)
        return any(libc.umount2(path, 2) == 0 for path in (b"/tmp", b"/proc", b"/"))
    """,
    ),
    _attack(
        "chroot-out",
        "escape",
        "leaves its root the classical way",
        """
        import os
        os.mkdir("/tmp/in")
        os.chroot("/tmp/in")
        return True
    """,
    ),
    _attack(
        "capabilities",
        "escape",
        "has a capability left",
        """
        lines = open("/proc/self/status").read().splitlines()
        sets = ("CapPrm", "CapEff", "CapBnd")
        return any(int(line.split()[1], 16) for line in lines if line.startswith(sets))
    """,
    ),
]
NETWORK = [
    _attack(
        "tcp",
        "escape",
        "connects to a port of the host",
        """
        import socket
        socket.create_connection(("127.0.0.1", {port}), timeout=1)
        return True
    """,
        True,
    ),
    _attack(
        "udp",
        "escape",
        "sends a datagram",
        """
        import socket
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53))
        return True
    """,
    ),
    _attack(
        "unix-socket",
        "escape",
        "connects to a Unix socket of the host",
        """
        import socket
        socket.socket(socket.AF_UNIX).connect("{socket}")
        return True
    """,
        True,
    ),
    _attack(
        "abstract-socket",
        "escape",
        "connects to an abstract socket of the host",
        """
        import socket
        socket.socket(socket.AF_UNIX).connect("\\0{marker}")
        return True
    """,
        True,
    ),
    _attack(
        "netlink",
        "escape",
        "asks the kernel about the network",
        """
        import socket
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        return True
    """,
        True,
    ),
    _attack(
        "shared-memory",
        "escape",
        "opens shared memory that outlives it",
        """
        import ctypes
        return ctypes.CDLL(None).shmget(0x50415245, 4096, 0o1666) >= 0
    """,
    ),
    _attack(
        "io-uring",
        "escape",
        "goes round the filter through io_uring",
        """
        import ctypes
        room = ctypes.create_string_buffer(512)
        return ctypes.CDLL(None).syscall(425, 4, room) >= 0
    """,
    ),
    _attack(
        "host-name",
        "escape",
        "renames the machine",
        """
        import socket
        socket.sethostname("{marker}")
        return True
    """,
    ),
]
BOMBS = [
    _attack(
        "endless-loop",
        "bomb",
        "never ends",
        """
        while True:
            pass
    """,
    ),
    _attack(
        "sleep",
        "bomb",
        "sleeps through the night",
        """
        import time
        time.sleep(3600)
        return True
    """,
    ),
    _attack(
        "deaf-loop",
        "bomb",
        "ignores signals and never ends",
        """
        import signal
        for number in range(1, 64):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
    """,
    ),
    _attack(
        "regex",
        "bomb",
        "a regular expression that takes years",
        """
        import re
        return re.match(r"(a+)+$", "a" * 60 + "b") is None
    """,
    ),
    _attack(
        "fork-bomb",
        "bomb",
        "forks without end",
        """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """,
    ),
    _attack(
        "many-processes",
        "bomb",
        "has a thousand processes at once",
        """
        import os, time
        for _ in range(1000):
            if os.fork() == 0:
                time.sleep(3600)
        return True
    """,
    ),
    _attack(
        "thread-bomb",
        "bomb",
        "has ten thousand threads at once",
        """
        import threading, time
        for _ in range(10000):
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        return True
    """,
    ),
    _attack(
        "memory-bomb",
        "bomb",
        "takes memory without end",
        """
        held = []
        for _ in range(1 << 16):
            held.append(bytearray(b"x" * (16 << 20)))
        return True
    """,
    ),
    _attack(
        "memory-of-many",
        "bomb",
        "takes memory in many processes, little in each",
        """
        import os, time
        for _ in range(12):
            if os.fork() == 0:
                held = bytearray(b"x" * (300 << 20))
                time.sleep(3600)
        time.sleep(5)
        return True
    """,
    ),
    _attack(
        "shared-pages",
        "bomb",
        "takes shared memory without a name",
        """
        import mmap
        held = []
        for _ in range(1 << 14):
            held.append(mmap.mmap(-1, 16 << 20))
            held[-1].write(b"x" * (16 << 20))
        return True
    """,
    ),
    _attack(
        "memory-file",
        "bomb",
        "takes memory through files without a name",
        """
        import os
        for _ in range(50):
            file = os.memfd_create("x")
            os.write(file, b"x" * (32 << 20))
        return True
    """,
    ),
    _attack(
        "disk-bomb",
        "bomb",
        "fills the disk",
        """
        for number in range(64):
            with open(f"/tmp/{marker}-{number}", "wb") as file:
                file.write(b"x" * (16 << 20))
        return True
    """,
    ),
    _attack(
        "huge-file",
        "bomb",
        "writes one huge file",
        """
        with open("/tmp/{marker}", "wb") as file:
            for _ in range(1 << 12):
                file.write(b"x" * (1 << 20))
        return True
    """,
    ),
    _attack(
        "file-bomb",
        "bomb",
        "makes a million files",
        """
        for number in range(1_000_000):
            open(f"/tmp/{marker}-{number}", "w").close()
        return True
    """,
    ),
    _attack(
        "deep-folders",
        "bomb",
        "makes folders in folders without end",
        """
        import os
        while True:
            os.mkdir("d")
            os.chdir("d")
    """,
    ),
    _attack(
        "open-files",
        "bomb",
        "opens a hundred thousand files",
        """
        held = [open("/dev/null") for _ in range(100_000)]
        return True
    """,
    ),
    _attack(
        "endless-output",
        "bomb",
        "prints without end",
        """
        while True:
            print("x" * 65536)
    """,
    ),
    _attack(
        "endless-errors",
        "bomb",
        "writes to every open file without end",
        """
        import os
        while True:
            for number in range(8):
                try:
                    os.write(number, b"x" * 65536)
                except OSError:
                    pass
    """,
    ),
    _attack(
        "deep-recursion",
        "bomb",
        "overflows the stack of C",
        """
        import sys
        sys.setrecursionlimit(10 ** 9)
        def deeper(n):
            return deeper(n + 1) + 1
        return deeper(0)
    """,
    ),
    _attack(
        "crash",
        "bomb",
        "crashes the interpreter",
        """
        import ctypes
        return ctypes.string_at(1)
    """,
    ),
    _attack(
        "huge-answer",
        "bomb",
        "answers with a gigabyte",
        """
        return "x" * (600 << 20)
    """,
    ),
    _attack(
        "nested-answer",
        "bomb",
        "answers with lists in lists in lists",
        """
        answer = []
        for _ in range(100_000):
            answer = [answer]
        return answer
    """,
    ),
    _attack(
        "own-answer",
        "bomb",
        "answers with a list that holds itself",
        """
        answer = []
        answer.append(answer)
        return answer
    """,
    ),
    _attack(
        "endless-iterator",
        "bomb",
        "answers with what never ends",
        """
        import itertools
        return itertools.count()
    """,
        tests="assert -1 in attack()",
    ),
]
CHEATS = [
    _cheat("exit-0", "leaves with success before the tests", "import sys\nsys.exit(0)"),
    _cheat("hard-exit-0", "leaves without the interpreter noticing", "import os\nos._exit(0)"),
    _cheat(
        "system-exit",
        "raises SystemExit in the call",
        """
        def add(a, b):
            raise SystemExit(0)
    """,
    ),
    _cheat(
        "exit-in-call",
        "leaves with success in the call",
        """
        import os
        def add(a, b):
            os._exit(0)
    """,
    ),
    _cheat(
        "exit-at-exit",
        "leaves with success when the interpreter ends",
        """
        import atexit, os
        atexit.register(lambda: os._exit(0))
        def add(a, b):
            return 0
    """,
    ),
    _cheat(
        "quit",
        "quits",
        "quit = type(exit) if 'exit' in dir(__builtins__) else SystemExit\nraise SystemExit",
    ),
    _cheat(
        "kill-self",
        "ends itself with a signal",
        """
        import os, signal
        def add(a, b):
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    ),
    _cheat(
        "keyboard-interrupt",
        "raises what handlers of errors let through",
        """
        def add(a, b):
            raise KeyboardInterrupt
    """,
    ),
    _cheat(
        "generator-exit",
        "raises GeneratorExit",
        """
        def add(a, b):
            raise GeneratorExit
    """,
    ),
    _cheat(
        "exec-true",
        "becomes a program that succeeds",
        """
        import os
        def add(a, b):
            os.execv("/bin/true", ["true"])
    """,
    ),
    _cheat(
        "equals-everything",
        "returns an object that equals everything",
        """
        class Always:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def add(a, b):
            return Always()
    """,
    ),
    _cheat(
        "equal-integer",
        "returns an integer that equals everything",
        """
        class Always(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = int.__hash__
        def add(a, b):
            return Always(0)
    """,
    ),
    _cheat(
        "patch-builtins",
        "replaces built-in functions and errors",
        """
        import builtins
        class Never(Exception):
            def __new__(cls, *args): raise SystemExit(0)
        builtins.AssertionError = Never
        builtins.range = builtins.len = builtins.sorted = lambda *a: []
        def add(a, b):
            return 0
    """,
    ),
    _cheat(
        "patch-frames",
        "changes the code of whoever runs it",
        """
        import gc, types
        def empty(*a, **k): return {"value": True, "status": "passed", "reason": ""}
        for each in gc.get_objects():
            if isinstance(each, types.FunctionType) and "sandbox" in (each.__module__ or ""):
                try:
                    each.__code__ = empty.__code__
                except ValueError:
                    pass
        def add(a, b):
            return 0
    """,
    ),
    _cheat(
        "trace",
        "traces the interpreter and jumps over assertions",
        """
        import sys
        def tracer(frame, event, arg):
            frame.f_trace_lines = True
            return tracer
        sys.settrace(tracer)
        def add(a, b):
            frame = sys._getframe()
            while frame:
                frame.f_trace = lambda f, e, a: setattr(f, "f_lineno", f.f_lineno + 1)
                frame = frame.f_back
            return 0
    """,
    ),
    _cheat(
        "forge-verdict",
        "writes a verdict on every open file",
        """
        import json, os
        verdict = json.dumps({"status": "passed", "reason": ""}).encode()
        def add(a, b):
            for number in range(64):
                try:
                    os.write(number, len(verdict).to_bytes(4, "big") + verdict)
                except OSError:
                    pass
            return 0
    """,
    ),
    _cheat(
        "forge-early",
        "writes a verdict before it is asked",
        """
        import json, os
        verdict = json.dumps({"status": "passed", "reason": "", "value": None}).encode()
        for number in range(64):
            for _ in range(9):
                try:
                    os.write(number, len(verdict).to_bytes(4, "big") + verdict)
                except OSError:
                    pass
        os._exit(0)
    """,
    ),
    _cheat(
        "forge-names",
        "answers with names that were not asked for",
        """
        import json, os
        names = {"dict": [["check", None], ["assert", None], ["add", {"object": 0}]]}
        for message in ({"value": None}, {"value": names}):
            text = json.dumps(message).encode()
            os.write(3, len(text).to_bytes(4, "big") + text)
        os._exit(0)
    """,
    ),
    _cheat(
        "pickle",
        "sends a pickle that runs code in its reader",
        """
        import os, pickle
        class Run:
            def __reduce__(self): return (exec, ("import os; os._exit(0)",))
        def add(a, b):
            text = pickle.dumps(Run())
            os.write(3, len(text).to_bytes(4, "big") + text)
            return 0
    """,
    ),
    _cheat(
        "fork-answers",
        "answers twice, from two processes",
        """
        import os
        def add(a, b):
            os.fork()
            return 0
    """,
    ),
    _cheat(
        "module-as-function",
        "offers a function of the tests' own process",
        """
        from operator import truth as add
    """,
    ),
    _cheat(
        "exec-as-function",
        "offers exec as its function",
        """
        from builtins import exec as add
    """,
    ),
    _cheat(
        "stop-parent",
        "stops whoever runs the tests",
        """
        import os, signal
        def add(a, b):
            os.kill(os.getppid(), signal.SIGSTOP)
            return 0
    """,
    ),
    _cheat("open-end", "ends so that the tests would become part of a string", 'x = """\n'),
]
ALL = [*FILES, *SECRETS, *PROCESSES, *NETWORK, *BOMBS, *CHEATS]
