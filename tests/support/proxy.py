"""A TCP proxy that can keep answers back and cut the line, as a network does at the worst moment."""

from __future__ import annotations

import contextlib
import socket
import threading


class _Gate:
    """Answers of the lines that were opened before the next cut."""

    def __init__(self) -> None:
        self.decided = threading.Event()
        self.decided.set()
        self.lost = False


class Proxy:
    """Forwards bytes between clients and `target`, a port of this host."""

    def __init__(self, port: int) -> None:
        self.target = port
        self._gate = _Gate()
        self._lines: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def keep_answers(self) -> None:
        """From now on requests arrive and answers do not."""
        self._gate.decided.clear()

    def cut(self) -> None:
        """Cut every line, losing the answers that were kept, and let new ones work."""
        lines, self._lines = self._lines, []
        gate, self._gate = self._gate, _Gate()
        gate.lost = True
        gate.decided.set()
        for line in lines:
            _shut(line)

    def close(self) -> None:
        _shut(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._lines += [client, server]
                threading.Thread(target=_forward, args=(client, server), daemon=True).start()
                threading.Thread(target=_forward, args=(server, client, self._gate), daemon=True).start()


def _forward(source: socket.socket, target: socket.socket, gate: _Gate | None = None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if gate is not None:
                gate.decided.wait()
                if gate.lost:
                    break
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
