"""Flower: the only file that imports it. A server that listens for nodes, and a node that fetches messages and replies.

Flower's public API (``flwr.app``) carries the message: a kind, a few facts and one array of bytes. One array, because a
round costs CPU per array and per byte. All else lies below that API: its ServerApp and ClientApp cost three guarantees.

* Flower's SuperLink also listens for control: whoever reaches that interface lets every hospital run code. Here only
  the Fleet API listens, which hospitals call. It admits registered keys, and every request is signed.
* Flower's SuperNode runs the code that a server sends. Here a node hands messages to the installed medfed.
* Flower's Grid waits without an end for a site that never comes, and sends a message once. :mod:`medfed.sites.network`
  bounds the waiting, and sends a message again to a site that was restarted.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from flwr.app import Array, ArrayRecord, ConfigRecord, Metadata, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable import inflatable_object as objects
from flwr.supercore.inflatable import inflatable_protobuf_utils as calls
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, pull_objects, push_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from medfed.core.errors import RunError
from medfed.sites.credentials import Certificates, public_bytes
from medfed.sites.remote import Message, NoAnswer

Call = Callable[[Any], Any]
Repeat = Callable[..., Any]
"""Calls again while the network fails: (call, request, seconds or None for the node's whole patience)."""
HEARTBEAT_SECONDS = 10.0
"""How often a site shows that it is there; after two missed beats the server knows it is gone."""
POLL_SECONDS, SLOWEST_POLL_SECONDS = 0.1, 1.0
START_SECONDS = 30.0
RETRY_SECONDS = 30.0
"""A part of a message is requested or sent again for so long before the connection is made anew."""
UNAVAILABLE = NoAnswer("the site is gone: it missed its heartbeats")


class Presence(NamedTuple):
    """Whether a site is connected, since when (as a name), and how many seconds ago it was expected to beat."""

    online: bool
    connection: str
    overdue_seconds: float


class Listener:
    """A SuperLink that admits the registered keys and offers its Fleet API only; everything is in memory. Port 0 takes
    a free one. ``keys``: site → public key (PEM) of its node. ``log`` is for the lines of the web server."""

    def __init__(self, host: str, port: int, files: Certificates, keys: Mapping[str, bytes], log: Path) -> None:
        log_to(log)
        store = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        self._factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), store)
        self._state = self._factory.state()
        self.nodes = {
            site: self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_SECONDS, name=site)
            for site, key in sorted(keys.items())
        }
        self._host, self.port = host, port
        tls: dict[str, Any] = {"ssl_certfile": files.certificate, "ssl_keyfile": files.key}
        self._http = uvicorn.Server(uvicorn.Config(self._app(), log_config=None, **tls))
        self._thread = threading.Thread(target=lambda: self._http.run(sockets=[self._socket]), daemon=True)
        self._stopped = threading.Event()
        self._run = self._task = 0

    def start(self) -> None:
        """Listen, and open the run that messages belong to. Raises RunError if it cannot."""
        self._socket = _listen(self._host, self.port)
        self.port = self._socket.getsockname()[1]
        self._thread.start()
        limit = time.monotonic() + START_SECONDS
        while not self._http.started:
            if not self._thread.is_alive() or time.monotonic() > limit:
                raise RunError("the server did not start", where=f"port {self.port}", hint="see server.log")
            time.sleep(POLL_SECONDS)
        self._open_run()

    def stop(self) -> None:
        """End the run and stop listening."""
        self._stopped.set()
        if self._task:
            self._state.finish_task(self._task, SubStatus.COMPLETED, "")
        self._http.should_exit = True
        if self._thread.is_alive():
            self._thread.join(START_SECONDS)

    def online(self) -> set[str]:
        """Return the sites that are connected now."""
        connected = self._state.get_nodes(self._run)
        return {site for site, node in self.nodes.items() if node in connected}

    def presence(self, site: str) -> Presence:
        """Return whether and since when ``site`` is connected."""
        (node,) = self._state.get_node_info(node_ids=[self.nodes[site]])
        return Presence(node.status == NodeStatus.ONLINE, node.last_activated_at, time.time() - node.online_until)

    def send(self, site: str, message: Message, seconds: float) -> str:
        """Store a message that ``site`` may fetch and answer within ``seconds``; return its id."""
        ends = {"src_node_id": SUPERLINK_NODE_ID, "dst_node_id": self.nodes[site], "reply_to_message_id": ""}
        kind = {"group_id": message.kind, "message_type": "query.medfed"}
        run = {"run_id": self._run, "src_task_id": self._task, "created_at": time.time(), "ttl": seconds}
        metadata: dict[str, Any] = {**ends, **kind, **run}
        whole = make_message(Metadata(message_id="", **metadata), _content(message))
        with objects.no_object_id_recompute():
            message_id = whole.object_id
            envelope = make_message(Metadata(message_id=message_id, **metadata), RecordDict())
            session, tree = self._state.start_session(self._run), objects.get_object_tree(whole)
            _, missing = self._state.store_message_and_object_tree(envelope, tree, session)
            for name, part in objects.get_all_nested_objects(whole).items():
                if name in missing:
                    self._state.store_object(self._run, session, name, part.deflate())
        return message_id

    def take_back(self, site: str, message_id: str) -> bool:
        """Take a message back if ``site`` has not fetched it, and return whether it had."""
        envelopes = self._state.get_message_ins(self.nodes[site], None, run_id=self._run)
        unread = {envelope.metadata.message_id for envelope in envelopes}
        self._state.delete_messages(unread)
        for name in unread:
            self._state.object_store.delete(name)
        return message_id not in unread

    def reply_to(self, message_id: str) -> str | NoAnswer | None:
        """Return the id of the reply to a message, which may still be arriving; None before one is announced."""
        for reply in self._state.get_message_res({message_id}, self._run):
            return UNAVAILABLE if reply.has_error() else reply.metadata.message_id
        return None

    def content(self, reply_id: str) -> Message | NoAnswer | None:
        """Return the content of a reply, or None while it is still arriving."""
        try:
            tree = self._state.object_store.get_object_tree(reply_id)
            parts = [part.object_id for part in objects.iterate_object_tree(tree)]
            contents = {name: self._state.get_object(self._run, name) for name in parts}
            if b"" in contents.values() and None not in contents.values():
                return None
            answer: Message | NoAnswer = _opened(reply_id, {name: data or b"" for name, data in contents.items()})
        except Exception as error:  # a site can send any bytes: whatever they break is its failure alone
            answer = NoAnswer(f"its answer did not arrive whole: {type(error).__name__}")
        self._state.object_store.delete(reply_id)
        return answer

    def forget(self, message_id: str) -> None:
        """Forget a message and its reply."""
        self._state.delete_messages({message_id})

    def _app(self) -> FastAPI:
        """Return the web application: Flower's Fleet API with its authentication, and nothing else."""
        translated = Middleware(BaseHTTPMiddleware, dispatch=http_error_translator)
        layers = [translated, Middleware(ProtobufTranslationMiddleware), Middleware(NodeAuthMiddleware)]
        app = FastAPI(openapi_url=None, middleware=layers)
        app.state.linkstate_factory, app.state.enable_supernode_auth = self._factory, True
        app.include_router(fleet_router)
        return app

    def _open_run(self) -> None:
        kind = TaskType.SERVER_APP
        self._run = self._state.create_run("medfed/medfed", "1", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, kind)
        task = self._state.get_run_info(run_ids=[self._run])[0].primary_task_id
        if task is None or self._state.claim_task(task) is None or not self._state.activate_task(task):
            raise RunError("Flower did not open the run", where=f"run {self._run}", hint="see server.log")
        self._task = task
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def _keep_alive(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._state.acknowledge_task_heartbeat(self._task)


class GoneError(Exception):
    """The server forgot this connection, or its run is over: connect anew."""


class RefusedError(Exception):
    """The server does not admit the key, or not yet: a process that held it before may have died just now."""


FAILURES = (httpx.HTTPError, OSError, GoneError, RefusedError, ObjectPullError, ObjectPushError)
"""Errors of a connection that breaks."""


class Connection:
    """A node's activated connection to ``host:port``: messages in, replies out, and heartbeats in a thread. ``ca`` is
    the server's certificate authority, PEM. Raises RefusedError if the server does not admit the key."""

    def __init__(self, address: str, ca: bytes, private_key: ec.EllipticCurvePrivateKey, repeat: Repeat) -> None:
        public_key = private_key.public_key()
        signed = NodeAuthHttpInterceptor(private_key, public_key)
        interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), signed]
        self._client = FleetHttpClient.from_server_address(address, False, ca, interceptors)
        self._public_key, self._repeat = public_bytes(public_key), repeat
        self.lost, self._closed = threading.Event(), threading.Event()

    def __enter__(self) -> Connection:
        try:
            self.activate()
        except BaseException:
            self._client.close()
            raise
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self.deactivate()
        self._client.close()

    def activate(self) -> None:
        """Make the server know that this site is connected."""
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_SECONDS)
        try:
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as error:
            raise RefusedError(f"the server answered {error.response.status_code}") from error

    def deactivate(self) -> None:
        """Make the server know that this site leaves, unless it is away or takes this site for gone already."""
        with suppress(httpx.HTTPError, RuntimeError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def receive(self) -> tuple[FlowerMessage, Message] | None:
        """Return the next message, as Flower's envelope and as ours; None where there is none."""
        response = self._repeat(self._client.PullMessages, PullMessagesRequest(node=self._node), None)
        if not response.messages_list:
            return None
        envelope, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
        run = envelope.metadata.run_id
        pull = calls.make_pull_object_fn_protobuf(self._briefly(self._client.PullObject), self._node, run)
        contents = pull_objects([part.object_id for part in objects.iterate_object_tree(tree)], pull)
        confirm = self._briefly(self._client.ConfirmMessageReceived)
        calls.make_confirm_message_received_fn_protobuf(confirm, self._node, run)(tree.object_id)
        try:
            return envelope, _opened(tree.object_id, contents)
        except Exception as error:
            raise GoneError(f"an unreadable message: {type(error).__name__}") from error

    def reply(self, envelope: FlowerMessage, answer: Message) -> None:
        """Send the answer to a message."""
        reply = FlowerMessage(_content(answer), reply_to=envelope)
        with objects.no_object_id_recompute():
            head = message_to_proto(remove_content_from_message(reply))
            head.metadata.message_id = reply.object_id
            tree = objects.get_object_tree(reply)
            request = PushMessagesRequest(node=self._node, messages_list=[head], message_object_trees=[tree])
            response = self._repeat(self._client.PushMessages, request, None)
            run, push = envelope.metadata.run_id, self._briefly(self._client.PushObject)
            send = calls.make_push_object_fn_protobuf(push, self._node, run, response.session_id)
            wanted = set(response.objects_to_push)
            push_objects(objects.get_all_nested_objects(reply), send, object_ids_to_push=wanted)

    def _briefly(self, call: Call) -> Call:
        return lambda request: self._repeat(call, request, RETRY_SECONDS)

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
            try:
                heard = self._client.SendNodeHeartbeat(request).success
            except httpx.TransportError:
                continue  # the next request shows whether it is back
            except httpx.HTTPError:
                heard = False
            if not heard:
                self.lost.set()
                return


def _content(message: Message) -> RecordDict:
    """Return ``message`` as Flower carries it."""
    array = Array(dtype="uint8", shape=(len(message.payload),), stype="bytes", data=message.payload)
    facts = ConfigRecord({"kind": message.kind, "protocol": message.protocol, **message.facts})
    return RecordDict({"payload": ArrayRecord({"bytes": array}), "facts": facts})


def _opened(message_id: str, contents: dict[str, bytes]) -> Message:
    """Return the message that the objects ``contents`` make up; bytes that are none raise anything."""
    content = inflatable_utils.inflate_object_from_contents(message_id, contents).content  # type: ignore[attr-defined]
    facts = {name: str(value) for name, value in content.config_records["facts"].items()}
    protocol, payload = facts.pop("protocol", "1"), content.array_records["payload"]["bytes"].data
    return Message(facts.pop("kind", ""), facts, payload, protocol)


def _listen(host: str, port: int) -> socket.socket:
    """Bind now, so that a taken port is an error at once."""
    family, both = (socket.AF_INET6, socket.has_dualstack_ipv6()) if ":" in host else (socket.AF_INET, False)
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        hint = "stop what listens there, or change port"
        raise RunError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", hint=hint) from error


def log_to(path: Path) -> None:
    """Send the lines of Flower and its web server to a file; they name nodes and messages, never data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("flwr", "uvicorn", "uvicorn.error", "uvicorn.access"):
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
