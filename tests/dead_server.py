"""A file system whose server has died, as an NFS mount whose host is gone: each call on it waits in the kernel for ever.

A program: ``unshare -m python dead_server.py DIRECTORY COMMAND...`` mounts one at DIRECTORY by /dev/fuse, in a mount
namespace of its own, and runs COMMAND. It takes each request and answers none, so that not even SIGKILL ends the wait.
"""

import ctypes
import os
import struct
import subprocess
import sys
import threading

_INIT = 26
_HEADER = struct.Struct("=IIQQIIII")
_ANSWER = struct.Struct("=IiQIIIIHHIIHHI28x")


def _serve(fd: int) -> None:
    while True:
        try:
            request = os.read(fd, 1 << 20)
        except OSError:
            return
        _, opcode, unique, *_ = _HEADER.unpack_from(request)
        if opcode == _INIT:
            os.write(fd, _ANSWER.pack(_ANSWER.size, 0, unique, 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 0, 0, 0))


def main(directory: str, *command: str) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"dead", os.fsencode(directory), b"fuse", 0, options) != 0:
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        return 77
    threading.Thread(target=_serve, args=(fd,), daemon=True).start()
    return subprocess.run(command, check=False, timeout=120).returncode


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
