"""Write docs/sandbox.md: how programs are run, and the hostile ones that the tests let loose."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "evaluate" / "sandbox"))

PAGE = ROOT / "docs" / "sandbox.md"
HEAD = """\
# The sandbox

HumanEval and MBPP are scored by running what a model wrote. Nobody has read these programs, so
Paretune runs them where they can do no harm. It needs neither root nor docker.

```python
from paretune.evaluate.sandbox import Program, open_sandbox

with open_sandbox() as sandbox:
    (verdict,) = sandbox.run([Program("def add(a, b): return a + b", "assert add(2, 3) == 5")])
print(verdict.status)  # passed
```

`open_sandbox` takes a name; `auto`, the default, is the first of these that works:

| name | needs | what stands between a program and the machine |
|---|---|---|
| `bubblewrap` | [bubblewrap](https://github.com/containers/bubblewrap) installed, and an \
ordinary user | all of the next line, inside a container that bubblewrap makes |
| `namespaces` | Linux that lets ordinary users make namespaces | user, mount, process, network, \
IPC, host-name and cgroup namespaces; an empty root in memory; Landlock; a seccomp filter; limits |
| `landlock` | Linux 5.13 or later; works in most containers | Landlock; a seccomp filter; limits. \
No file can be written and no process started |
| `unsafe` | nothing; it has to be asked for by name | limits of time and memory only |

Where none of the first three works, it refuses and says why. `register` adds a sandbox of your
own. Started by root, Paretune first becomes a user who owns nothing.

## What a program can and cannot do

- It reads the Python interpreter, system libraries and the Python packages that are installed
  beside Paretune. It sees no other file. It writes to a folder in memory of 64 MiB, which is gone
  when it ends.
- It has no network, no environment variable of yours, no open file, and no capability.
- It sees no process but its own, and cannot start an executable.
- It has 3 seconds of processor time, three times as long by the clock, 1 GiB of memory and 16
  processes, all its processes and its tests taken together. All that it started is killed before
  the next program begins.
- Time is scaled: a reference program is timed when the sandbox opens, and a slower machine gives
  more. Time spent waiting for a core does not count. So a busy machine does not turn right answers
  into wrong ones.
- The verdict is `passed`, `failed`, `timeout` or `memory`. The last two say that a limit ended the
  program, and are kept apart from wrong answers.

## How a verdict is reached

The tests do not run in the program's process. They run in a second one, which asks the first for
the results of its functions. Only plain values come back (numbers, strings, lists, and the like,
as JSON). So leaving early, patching `assert`, an object that equals everything, or a forged
message does not pass. Random numbers and the order of sets are the same in every run.

Tests that read a program's own classes work too: an instance stays in the program's process, and
each use of it is a call there.

What remains possible:

- Tests that use helpers which the program defines must trust them. HumanEval 32, 38 and 50 use a
  function of the prompt, which a completion may define anew.
- Where tests compare two objects of a class that the program defines, the program decides whether
  they are equal.
- Tests see the first value of a global variable of the program, and cannot change it.

Not covered: holes in the Linux kernel, which all processes share, and measuring time to learn about
other users of the machine. If that matters, run Paretune in a virtual machine. What the installed
Python packages contain can be read.

## Throughput and agreement

See the rows `sandbox` in [measured claims](measured.md); `python benchmarks/sandbox.py` measures
them.

## Hostile programs

The tests let each of these loose in each sandbox, started by root and by an ordinary user. After
each, no file, no process and no change may be left, and the run must go on.
"""
HEADINGS = {
    "escape": "Programs that reach for what is not theirs",
    "bomb": "Programs that use up the machine",
    "cheat": "Programs that want to pass without being right",
}


def page() -> str:
    """The whole page."""
    from hostile_programs import ALL

    parts = [HEAD]
    for kind, heading in HEADINGS.items():
        found = [each for each in ALL if each.kind == kind]
        parts.append(f"\n### {heading} ({len(found)})\n\n| program | what it does |\n|---|---|\n")
        parts += [f"| {each.name} | {each.what} |\n" for each in found]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")
