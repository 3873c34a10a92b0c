"""Whether Ray is still there. Nothing in Ray tells a program that waits that its raylet or its head has died."""

import threading
import time
from collections.abc import Callable
from typing import Any

from lchp.errors import reason

EVERY = 2.0
"""Seconds between two looks."""
START = 240.0
"""Seconds in which Ray must have started or been joined."""
SILENCE = 30.0
"""Seconds for which the head may give no answer; a machine that swaps is slow, and a network has its moments."""
ANSWER = 10.0
"""Seconds in which a head answers one question."""
DEAD = 1
"""Of a node, in Ray's GcsNodeInfo."""


class Watch:
    """A thread that looks at Ray every few seconds, and calls `ended` once with what is wrong."""

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended, self._over = ended, threading.Event()
        self._begin = time.monotonic()
        self._heard: float | None = None
        self._processes: dict[str, Any] = {}
        self._head: Any = None
        self._node = ""
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
        self._thread.start()

    def follow(self) -> None:
        """From now on: the Ray that this process has just started or joined."""
        import ray
        from ray._private import worker

        node: Any = worker._global_node
        if node is None:  # Ray's client, which says itself that its server is gone
            self.stop()
            return
        self._node, self._head = ray.get_runtime_context().get_node_id(), nodes_of(node.gcs_address)
        self._processes = {
            name: infos[0].process for name, infos in node.all_processes.items() if name in ("gcs_server", "raylet")
        }
        self._heard = time.monotonic()

    def stop(self) -> None:
        """Looks no more."""
        self._over.set()

    def fault(self) -> str | None:
        """What is wrong with Ray now."""
        if self._heard is None:
            late = time.monotonic() - self._begin > START
            return f"Ray has not started within {START:.0f} s" if late else None
        for name, process in self._processes.items():
            if process.poll() is not None:
                return f"Ray's {name} on this machine ended (exit status {process.returncode})"
        try:
            states = self._head()
        except Exception as error:
            silent = time.monotonic() - self._heard
            what = reason(error)
            return f"the head of Ray has not answered for {silent:.0f} s ({what})" if silent > SILENCE else None
        self._heard = time.monotonic()
        return "Ray's raylet on this machine ended" if states.get(self._node) == DEAD else None

    def _loop(self) -> None:
        while not self._over.wait(EVERY):
            if (fault := self.fault()) is not None:
                if not self._over.is_set():
                    self._ended(fault)
                return


def nodes_of(address: str) -> Callable[[], dict[str, int]]:
    """A function that asks the head at HOST:PORT for the states of its nodes by their ids, and waits for ANSWER at
    most. It has a channel of its own, since Ray's clients try again for a minute, and then end the program. Raises
    grpc.RpcError."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    stub = NodeInfoGcsServiceStub(init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]))

    def ask() -> dict[str, int]:
        answer = stub.GetAllNodeInfo(GetAllNodeInfoRequest(), timeout=ANSWER)
        return {node.node_id.hex(): node.state for node in answer.node_info_list}

    return ask
