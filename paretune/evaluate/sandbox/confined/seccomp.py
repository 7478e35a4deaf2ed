"""A filter in the kernel on the system calls of a process and of all it starts (seccomp).

It closes what namespaces leave open: the calls that reach much kernel code and that no program
under test needs (sockets, namespaces of its own, tracing, keyrings, io_uring, memory that no limit
counts). Refused calls fail with EPERM, as without the permission; those newer than the filter
fail with ENOSYS, as on an older kernel, so that libraries fall back.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

from paretune.evaluate.sandbox.confined import linux

# (x86_64, aarch64), from asm/unistd.h; None where the architecture has no such call
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other programs, other processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # the network
    "socket": (41, 198),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "connect": (42, 203),
    # memory that no limit counts
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # parts of the kernel with a history of holes, and no use here
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_setup": (206, 0),
    "vmsplice": (278, 75),
    "tee": (276, 77),
    "fanotify_init": (300, 262),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "remap_file_pages": (216, 234),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    # the machine
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}
_FORK: dict[str, tuple[int | None, int | None]] = {"fork": (57, None), "vfork": (58, None)}
_SIGNAL = {
    "kill": (62, 129),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
_ANY_SIGNAL = {"tkill": (200, 130)}
_CLONE = (56, 220)
_SOCKETPAIR = (53, 199)
_IOCTL = (16, 29)
_SETRLIMIT, _PRLIMIT = (160, 164), (302, 261)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Calls from here on have the same number everywhere: io_uring (425) and all that came after it
_FIRST_NEW = 424
# CLONE_NEW*, without CLONE_NEWTIME, whose bit is one of clone's signal number
_NEW_NAMESPACE = 0x7E020000
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
# Typing into the terminal that the run was started from
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_RLIMIT_CORE = 4
# linux/bpf_common.h, linux/seccomp.h
_LOAD, _RETURN = 0x20, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_EPERM, _ENOSYS = 0x00050001, 0x00050026
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.c_void_p)]


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known here."""
    return platform.machine() in _AUDIT_ARCH


def restrict(*, processes: bool, signals: bool) -> None:
    """Install the filter on this process; it can never be taken off again.

    Args:
        processes: it may start processes; else only threads.
        signals: it may signal other processes, which is safe only in a process namespace of its
            own; else only itself.
    """
    program = compiled(processes=processes, only_signal=None if signals else os.getpid())
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, program)


@functools.cache
def compiled(*, processes: bool, only_signal: int | None) -> _Program:
    """The filter, kept so that a parent can make it once for all its children.

    Args:
        only_signal: the one process that may be signalled; None for any.
    """
    column = 0 if platform.machine() == "x86_64" else 1
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[platform.machine()]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _FIRST_NEW),
        (_RETURN, 0, 0, _ENOSYS),
    ]
    refused = dict(_REFUSED)
    if not processes:
        refused |= _FORK
    if only_signal is not None:
        refused |= _ANY_SIGNAL
    for numbers in refused.values():
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    code += _if_call(_CLONE[column], _ARGUMENT_0, (_ANY_BIT, _NEW_NAMESPACE, True))
    if not processes:
        code += _if_call(_CLONE[column], _ARGUMENT_0, (_ANY_BIT, _CLONE_THREAD, False))
    code += _if_call(_SOCKETPAIR[column], _ARGUMENT_0, (_EQUAL, _AF_UNIX, False))
    for request in (_TIOCSTI, _TIOCLINUX):
        code += _if_call(_IOCTL[column], _ARGUMENT_1, (_EQUAL, request, True))
    # With the limit of core dumps left as it is, a crash does not start the host's crash handler
    code += _if_call(_SETRLIMIT[column], _ARGUMENT_0, (_EQUAL, _RLIMIT_CORE, True))
    code += _if_call(_PRLIMIT[column], _ARGUMENT_1, (_EQUAL, _RLIMIT_CORE, True))
    if only_signal is not None:
        for numbers in _SIGNAL.values():
            code += _if_call(numbers[column], _ARGUMENT_0, (_EQUAL, only_signal, False))
    code.append((_RETURN, 0, 0, _ALLOW))
    instructions = (_Instruction * len(code))(*[_Instruction(*each) for each in code])
    program = _Program(len(code), ctypes.addressof(instructions))
    program.kept = instructions
    return program


def _if_call(
    number: int, argument: int, test: tuple[int, int, bool]
) -> list[tuple[int, int, int, int]]:
    """Refuse call ``number`` where a test of an argument gives the stated truth."""
    comparison, value, refuse_when = test
    jumps = (0, 1) if refuse_when else (1, 0)
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, argument),
        (comparison, *jumps, value),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, _NUMBER),
    ]
