"""Let processes meet before they can talk: a store that owns its port from the first moment.

Binding the socket ourselves, to one address, has two uses: no other process can take the port in
between, and on a private cluster nothing listens beyond loopback (torch would listen everywhere).
"""

from __future__ import annotations

import datetime
import os
import socket

import psutil
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]


def open_store(host: str, world_size: int, timeout_s: float) -> TCPStore:
    """Return the master's store, listening on `host` alone; its `.port` is for the others."""
    listener = socket.create_server((host, 0), family=_family(host), backlog=max(16, world_size))
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )


def join_store(host: str, port: int, world_size: int, timeout_s: float) -> TCPStore:
    """Anyone else's connection to the store at `host`:`port`."""
    timeout = datetime.timedelta(seconds=timeout_s)
    return TCPStore(host, port, world_size, is_master=False, wait_for_workers=False, timeout=timeout)


def use_interface_towards(host: str) -> None:
    """Have gloo talk over the network by which this process reaches `host`.

    Left alone it takes the address of the machine's name, which on many machines is loopback: nodes would
    wait for each other in vain. A GLOO_SOCKET_IFNAME that is set already stays.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with socket.socket(_family(host), socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if own in (address.address for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name


def free_port(host: str) -> int:
    """Return a port that is free now, for libraries that insist on opening it themselves."""
    with socket.create_server((host, 0), family=_family(host)) as listener:
        return listener.getsockname()[1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
