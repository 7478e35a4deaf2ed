"""A sandbox for programs that nobody has read: HumanEval, MBPP and their like.

``open_sandbox`` gives the strongest one that works here; ``Program`` goes in, ``Verdict`` comes
out. What is covered, by sandbox:

``namespaces`` (no root, no daemon)
    A program runs as an unprivileged user in user, mount, process, network, IPC, host-name and
    cgroup namespaces of its own. Its root is an empty file system in memory, in which only the
    interpreter, system libraries and installed Python packages can be read; it may write to a
    scratch folder of limited size that is gone afterwards. Its environment is made up; /proc shows
    its own processes alone; there is no network device but a loopback that is down. Landlock,
    where the kernel has it, says the same about files once more, and a seccomp filter refuses
    sockets, new namespaces, tracing, starting executables, and calls whose memory no limit counts.
    No capability is left and none can be gained. Processor time and memory are limited for each
    process and watched for all together; whatever a program started is killed before the next.
``bubblewrap`` (where bwrap is installed, for ordinary users)
    The same, inside a container that bubblewrap makes: two sets of walls.
``landlock`` (where namespaces are forbidden, as in most containers)
    The same user, Landlock and seccomp, and the same limits. A program may neither write any file
    nor start any process, nor signal one. It sees the host's name and the clock of its processes,
    and shares the kernel's namespaces.
``unsafe``
    Limits of time and memory only. Never chosen by itself.

The verdict: the tests run in a process of their own, which calls the program's functions through
a channel of plain values. A program can therefore not pass by leaving early, by patching the
interpreter, or by returning objects that equal everything; and it cannot read its tests. What
remains possible, since the tests believe it: where tests use helpers that the program defines
(HumanEval 32, 38 and 50 use one of the prompt's), a program may redefine them; where tests compare
two objects of a class that the program defines, it decides whether they are equal. A test that
reads or replaces the program's global variables sees their first values.

Not covered: a hole in the kernel itself (all sandboxes share the host's kernel; a virtual machine
around Paretune is the remedy), and side channels such as timing, on a machine that others share.
Installed Python packages can be read: they hold no secrets, or should not.
"""

from paretune.evaluate.sandbox.program import Limits, Program, Sandbox, Verdict
from paretune.evaluate.sandbox.registry import open_sandbox, register

__all__ = ["Limits", "Program", "Sandbox", "Verdict", "open_sandbox", "register"]
