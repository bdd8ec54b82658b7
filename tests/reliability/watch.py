"""Watches what code does to files, processes and the network, and how much it takes."""

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import time
from pathlib import Path

SECONDS = 20  # that reading anything may take
MEMORY = 4 << 30  # bytes that it may take

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"open", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr"}
_CHANGES |= {"os.removexattr", "shutil.copyfile"}
# These are about a link itself, not about what it points to.
_PLACES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink"}
_PLACES |= {"shutil.rmtree", "shutil.move"}
_SECOND = {"os.link", "os.symlink", "shutil.copyfile"}  # what is new comes second
_BOTH = {"os.rename", "shutil.move"}
_RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}
_RUNS |= {"os.fork", "os.forkpty", "os.startfile", "pty.spawn"}
_RUNS |= {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"}


class Stopped(BaseException):
    """What is watched did what it must not, or took too long."""


class _Watch:
    """The audit hook, which stays where it is for as long as Python runs."""

    folder, offenses, hooked = None, (), False

    def __call__(self, event, arguments):
        if self.folder is not None and (offense := self._offense(event, arguments)):
            self.offenses.append(offense)
            raise Stopped(offense)  # a stranger's code shall not run here, either

    def _offense(self, event, arguments):
        if event in _RUNS:
            return f"{event} {arguments}"[:300]
        if event == "open" and not _writes(*arguments[1:3]):
            return None
        if event in _CHANGES | _PLACES:
            both = arguments[: 2 if event in _BOTH | _SECOND else 1]
            for path in both[1:] if event in _SECOND else both:
                if not self._may_change(path, event in _PLACES):
                    return f"{event} {path!r}"[:300]
        return None

    def _may_change(self, path, itself):
        if isinstance(path, int):  # a file that is open already
            return True
        path = Path(os.fsdecode(path)).absolute()
        compiled = path.parent.name == "__pycache__" and ".pyc" in path.name
        path = path.parent.resolve() / path.name if itself else os.path.realpath(path)
        return compiled or Path(path).is_relative_to(self.folder)


def _writes(mode, flags):
    if isinstance(flags, int):
        return bool(flags & _WRITING)
    return isinstance(mode, str) and bool(set(mode) & set("wax+"))


_watch = _Watch()


@contextlib.contextmanager
def watched(folder, terminal=sys.stderr):
    """Changes outside of a folder, programs and connections are an AssertionError.

    Also what takes longer than ``SECONDS``: even where it does not come back to Python,
    in which case the process ends and tells the terminal where it was.
    """
    if not _Watch.hooked:
        sys.addaudithook(_watch)
        _Watch.hooked = True
    before = signal.signal(signal.SIGALRM, _too_slow)
    _watch.offenses, _watch.folder = [], os.path.realpath(folder)
    faulthandler.dump_traceback_later(3 * SECONDS, file=terminal, exit=True)
    signal.alarm(SECONDS)
    began = time.monotonic()
    try:
        yield
    finally:
        taken = time.monotonic() - began
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        _watch.folder = None
        signal.signal(signal.SIGALRM, before)
    # A library may have swallowed what stopped it.
    assert not _watch.offenses, f"it did what it must not: {_watch.offenses}"
    assert taken < SECONDS, f"it took {taken:.0f} s"


def _too_slow(*_):
    raise Stopped(f"it takes more than {SECONDS} s")


@contextlib.contextmanager
def bounded_memory(spare=MEMORY):
    """Memory beyond what is taken now has a limit, and so has the peak of what is used.

    Only Linux keeps the first; where it cannot be set the second alone counts.
    """
    peak, limits = _peak(), resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_taken() + spare, limits[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = _peak() - peak
    assert grown < spare, f"memory grew by {grown >> 20} MiB"


def _taken():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
