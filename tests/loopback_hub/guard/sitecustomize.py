"""First on the path of a test's subprocess: whatever leaves this machine is noted in a file, and fails.

A hook of the interpreter sees every connection and look-up of Python code, of whatever library; it cannot be removed.
"""

import ipaddress
import os
import sys

_CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
_ASKING = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def _is_here(host):
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _watch(event, arguments):
    if event in _CONNECTING:
        address = arguments[1]
        if not isinstance(address, tuple):  # a file, or a socket that is connected already
            return
        host = address[0]
    elif event in _ASKING:
        host = arguments[0]
    else:
        return
    if not _is_here(host):
        with open(os.environ["LOOPBACK_GUARD_LOG"], "a") as file:
            file.write(f"{event} {host}\n")
        raise PermissionError(f"beyond loopback: {event} {host}")


if "LOOPBACK_GUARD_LOG" in os.environ:
    sys.addaudithook(_watch)
