"""The running interpreter's Python code as a corpus: standard library and installed packages."""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.data.rows import AnyRow, BadRow, Document, RowCounts, unit_hash
from paretune.errors import UserError
from paretune.study.sources import PythonPackages

SITE_FOLDERS = ("site-packages", "dist-packages")
SKIPPED_FOLDERS = frozenset(
    [
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "lib-dynload",
        "site-packages",
        "dist-packages",
        "_vendor",
        "vendor",
        "_vendored",
        "vendored",
        "extern",
        "externals",
        "third_party",
        "_distutils",
        "node_modules",
    ]
)
"""Tests (often left out of an installation) and copies of other packages are not read."""
SKIPPED_FILES = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py|_sysconfigdata.*\.py")
LARGEST_FILE = 256 * 1024
"""Bytes; a longer file is a generated table, not code that somebody wrote."""
_SALT = "python-packages order"


@dataclass
class Package:
    """What is kept or held out together: a distribution, or a top-level module without one."""

    name: str
    version: str
    files: list[tuple[str, Path]] = field(default_factory=list)
    """Relative name and place of each file."""


class PythonCorpus:
    """Reads source files package by package in turn, in an order that no clock or disk decides.

    The first round takes one file of every package, the second round another, so that a small
    budget is a sample of all packages; a file is opened only when it is its turn and its package
    is wanted.
    """

    def __init__(self, config: PythonPackages) -> None:
        self.packages = _choose(config)
        self._read: dict[str, dict[str, Any]] = {}
        self._contents: set[bytes] = set()
        self.left_out: Counter[str] = Counter()

    def labels(self, counts: RowCounts) -> Iterator[tuple[str, str]]:
        """Id and package of every file, in reading order; no file is opened."""
        for package, name, _ in self._in_turn():
            yield name, package.name

    def rows(self, wanted: Callable[[str, str], bool]) -> Iterator[AnyRow]:
        """Wanted files as documents; blank files are passed over, copies are counted."""
        for package, name, path in self._in_turn():
            if not wanted(name, package.name):
                continue
            try:
                content = path.read_bytes()
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield BadRow(name, "not UTF-8")
                continue
            except OSError as error:
                yield BadRow(name, f"not readable ({error.strerror})")
                continue
            if not text.strip():
                continue
            digest = hashlib.sha256(content).digest()
            if digest in self._contents:
                self.left_out["copy of a file already read"] += 1
                continue
            self._contents.add(digest)
            self._note(package, content, digest)
            yield Document(name, package.name, text)

    def facts(self) -> dict[str, Any]:
        """Python's version, and of each package read its version, files, bytes and content hash."""
        return {
            "python": platform.python_version(),
            "packages_found": len(self.packages),
            "files_found": sum(len(package.files) for package in self.packages),
            "packages": {
                name: {**facts, "sha256": facts["sha256"].hexdigest()}
                for name, facts in sorted(self._read.items())
            },
        }

    def _note(self, package: Package, content: bytes, digest: bytes) -> None:
        fresh = {"version": package.version, "files": 0, "bytes": 0, "sha256": hashlib.sha256()}
        facts = self._read.setdefault(package.name, fresh)
        facts["files"] += 1
        facts["bytes"] += len(content)
        facts["sha256"].update(digest)

    def _in_turn(self) -> Iterator[tuple[Package, str, Path]]:
        round_ = 0
        waiting = self.packages
        while waiting:
            for package in waiting:
                yield package, *package.files[round_]
            round_ += 1
            waiting = [package for package in waiting if len(package.files) > round_]


def _choose(config: PythonPackages) -> list[Package]:
    wanted = config.packages
    stdlib = _stdlib() if wanted != "installed" else []
    installed = _installed() if wanted != "stdlib" else []
    packages = _merge(stdlib + installed)
    if not isinstance(wanted, str):
        packages = [_named(name, packages) for name in dict.fromkeys(wanted)]
    if not packages:
        raise UserError(f"python-packages: no Python source files found for packages: {wanted}")
    for package in packages:
        package.files.sort(key=lambda file: (unit_hash(_SALT, file[0]), file[0]))
    return sorted(packages, key=lambda package: (unit_hash(_SALT, package.name), package.name))


def _named(name: str, packages: list[Package]) -> Package:
    modules: dict[str, Package] = {}
    for package in packages:
        modules[package.name] = package
        for file, _ in package.files:
            modules.setdefault(file.split("/")[0].removesuffix(".py"), package)
    if name in modules:
        return modules[name]
    close = difflib.get_close_matches(name, modules, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(
        f"python-packages: no package '{name}' in this interpreter ({sys.executable}).{hint} "
        "Install it, or name others under packages"
    )


def _merge(packages: list[Package]) -> list[Package]:
    """One package a name; of two files with one relative name the first found is imported."""
    merged: dict[str, Package] = {}
    seen: set[str] = set()
    for package in packages:
        into = merged.setdefault(package.name, Package(package.name, package.version))
        for name, path in package.files:
            if name not in seen:
                seen.add(name)
                into.files.append((name, path))
    return [package for package in merged.values() if package.files]


def _stdlib() -> list[Package]:
    version = f"Python {platform.python_version()}"
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules = _modules(folder)
    names = frozenset(modules)
    return [Package(family(name, names), version, files) for name, files in modules.items()]


def family(module: str, modules: frozenset[str]) -> str:
    """The module that a private twin belongs to: ``_pydecimal`` is ``decimal`` written again."""
    bare = module.lstrip("_")
    if bare == module:
        return module
    for name in (bare.removeprefix("py"), bare, bare.split("_")[0]):
        if name in modules:
            return name
    return module


def _installed() -> list[Package]:
    paths = sysconfig.get_paths()
    candidates = [paths["purelib"], paths["platlib"], *sys.path]
    folders = [Path(path) for path in candidates if Path(path).name in SITE_FOLDERS]
    folders += [Path(paths["purelib"])]
    owners = importlib.metadata.packages_distributions()
    packages = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()):
        for module, files in _modules(folder).items():
            distributions = sorted(set(owners.get(module, ())))
            # A module that several distributions share (a namespace) is a group of its own.
            name = distributions[0] if len(distributions) == 1 else module
            versions = [f"{each} {_version(each)}" for each in distributions]
            packages.append(Package(name, ", ".join(versions) or "unknown", files))
    return packages


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _modules(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Source files of a library folder by top-level module, everything sorted by name."""
    modules: dict[str, list[tuple[str, Path]]] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = entry.stem if entry.suffix == ".py" else entry.name
        if not name.isidentifier() or entry.name in SKIPPED_FOLDERS:
            continue
        found = [entry] if entry.suffix == ".py" else list(_walk(entry))
        files = [(path.relative_to(folder).as_posix(), path) for path in found if _is_code(path)]
        if files:
            modules.setdefault(name, []).extend(files)
    return modules


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def _is_code(path: Path) -> bool:
    if SKIPPED_FILES.fullmatch(path.name):
        return False
    try:
        return 0 < path.stat().st_size <= LARGEST_FILE
    except OSError:
        return True  # a dangling link: counted as a bad row when it is its turn
