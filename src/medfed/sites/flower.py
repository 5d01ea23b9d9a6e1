"""The network: messages between one server and its sites over Flower, with TLS and node keys.

The only file that imports Flower. :class:`FlowerServer` is a SuperLink of which only the Fleet API listens, in the same
process as the round loop; :class:`FlowerSite` is a node that answers each message with a function of its own. A message
is a kind, a few facts and one array of bytes (one array: a round's cost is CPU per array and per byte), which Flower
cuts into chunks. The server sends no code, and there is no interface left by which anybody else could have any run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.retry import RetryInvoker, RetryState, exponential
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from medfed.core.errors import RunError
from medfed.sites.remote import Envelope, Lost

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when Flower is imported: nothing phones home
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
Request = TypeVar("Request")
Response = TypeVar("Response")
HEARTBEAT_SECONDS = 10.0
"""How often a site tells that it is there; after two missed beats the server knows it is gone."""
REFUSED_SECONDS = 3 * HEARTBEAT_SECONDS
"""A key is free again after two missed beats; one refused for longer is not known."""
POLL_SECONDS = 0.1
SLOWEST_POLL_SECONDS = 1.0
START_SECONDS = 30.0
RETRY_SECONDS = 30.0
"""A part of a message is asked for or sent again for so long before the connection is made anew."""
LATE_SECONDS = 24 * 3600.0
"""An answer that comes after its deadline is still told of for so long."""
UNAVAILABLE = "the site is gone: it missed its heartbeats"


@dataclass
class _Asked:
    """A letter that waits for its answer.

    Attributes:
        letter: what was sent.
        seconds: how long it waits.
        message_ids: as which message it was sent, every time.
        connection: when the site last connected, as of the last time.
    """

    letter: Envelope
    seconds: float
    message_ids: list[str] = field(default_factory=list)
    connection: str = ""


class FlowerServer:
    """A SuperLink that admits the registered keys and offers its Fleet API only.

    Args:
        host, port: where it listens; port 0 takes a free one.
        certificate, private_key: of the server, PEM files.
        keys: site → public key (PEM bytes) of its node.
        log: a file for the lines of the web server.

    Raises:
        RunError: on :meth:`start`, if it cannot listen there.
    """

    def __init__(
        self, host: str, port: int, certificate: Path, private_key: Path, keys: Mapping[str, bytes], log: Path
    ) -> None:
        _log_to(log)
        self._factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        )
        self._state = self._factory.state()
        self._nodes = {
            site: self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_SECONDS, name=site)
            for site, key in sorted(keys.items())
        }
        self._host, self._port = host, port
        config = uvicorn.Config(
            self._app(), ssl_certfile=certificate, ssl_keyfile=private_key, log_config=None, access_log=True
        )
        self._http = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._stopped = threading.Event()
        self._run = self._task = 0
        self._late: dict[str, tuple[str, str]] = {}
        """Letters that sites were still at when their time was over: message id → (site, kind)."""
        self._arriving: dict[str, Message | None] = {}
        """Answers that may be on their way still: message id → answer without content; None says the site is gone."""

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    def start(self) -> None:
        """Listen, and open the run that messages belong to."""
        self._socket = _listen(self._host, self._port)
        self._port = self._socket.getsockname()[1]
        self._thread.start()
        limit = time.monotonic() + START_SECONDS
        while not self._http.started:
            if not self._thread.is_alive() or time.monotonic() > limit:
                raise RunError("the server did not start", where=f"port {self._port}", hint="see server.log")
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
        """Return the sites that are there now."""
        there = self._state.get_nodes(self._run)
        return {site for site, node in self._nodes.items() if node in there}

    def ask(self, letters: Mapping[str, Envelope], seconds: float) -> Iterator[tuple[str, Envelope | Lost]]:
        """Send every site its letter and yield the answers as they come, at most ``seconds`` long.

        A site that is gone has one heartbeat's time to come back; when it does, it gets its letter again. An
        answer that comes after its time belongs to nobody: :meth:`late` tells of it, and its content is dropped. A
        letter that was not fetched in time is taken back.
        """
        asked = {site: _Asked(letter, seconds) for site, letter in sorted(letters.items())}
        for site, one in asked.items():
            self._send_again(site, one, self._node(site))
        limit, pause = time.monotonic() + seconds, POLL_SECONDS
        while asked and time.monotonic() < limit:
            answers = {site: answer for site, one in asked.items() if (answer := self._look(site, one))}
            for site, answer in answers.items():
                self._close(site, asked.pop(site), answer)
                yield site, answer
            pause = POLL_SECONDS if answers else min(pause * 1.5, SLOWEST_POLL_SECONDS)
            time.sleep(min(pause, max(0.0, limit - time.monotonic())))
        none = Lost(f"no answer within {seconds:g} s; an answer that comes later is refused")
        for site, one in asked.items():
            self._close(site, one, none)
            yield site, none

    def late(self) -> list[tuple[str, str]]:
        """Return (site, kind) of answers that came after their time since the last call; they are refused."""
        found = [(self._late.pop(message_id), answer) for message_id, answer in self._collect(set(self._late))]
        return [told for told, answer in found if isinstance(answer, Envelope)]

    def _look(self, site: str, asked: _Asked) -> Envelope | Lost | None:
        """Return the site's answer if there is one, or that the site is gone; if it is back, send the letter again."""
        node = self._node(site)
        if node.status != NodeStatus.ONLINE:
            return Lost(UNAVAILABLE) if time.time() - node.online_until > HEARTBEAT_SECONDS else None
        if node.last_activated_at != asked.connection:
            asked.message_ids = sorted(self._take_back(site, asked.message_ids))
            self._send_again(site, asked, node)
        found = dict(self._collect(set(asked.message_ids)))
        whole = [answer for answer in found.values() if isinstance(answer, Envelope)]
        # An answer that broke off when the site went away says nothing: the site has its letter anew, as the last one.
        return whole[0] if whole else found.get(asked.message_ids[-1])

    def _node(self, site: str) -> NodeInfo:
        (node,) = self._state.get_node_info(node_ids=[self._nodes[site]])
        return node

    def _send_again(self, site: str, asked: _Asked, node: NodeInfo) -> None:
        asked.message_ids.append(self._send(site, asked.letter, asked.seconds))
        asked.connection = node.last_activated_at

    def _close(self, site: str, asked: _Asked, answer: Envelope | Lost) -> None:
        """Expect no more of ``site``; what it still answers is refused, and told of if it had not answered in time."""
        fetched = self._take_back(site, asked.message_ids)
        if isinstance(answer, Envelope):
            self._state.delete_messages(fetched)
        else:
            self._late |= dict.fromkeys(fetched, (site, asked.letter.kind))

    def _take_back(self, site: str, message_ids: list[str]) -> set[str]:
        """Take back those letters that the site has not fetched; return the others."""
        letters = self._state.get_message_ins(self._nodes[site], None, run_id=self._run)
        unread = {letter.metadata.message_id for letter in letters}
        self._state.delete_messages(unread)
        for message_id in unread:
            self._state.object_store.delete(message_id)
        return set(message_ids) - unread

    def _app(self) -> FastAPI:
        """Return the web application: Flower's Fleet API with its authentication, and nothing else."""
        app = FastAPI(
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            middleware=[
                Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
                Middleware(ProtobufTranslationMiddleware),
                Middleware(NodeAuthMiddleware),
            ],
        )
        app.state.linkstate_factory = self._factory
        app.state.enable_supernode_auth = True
        app.include_router(fleet_router)
        return app

    def _serve(self) -> None:
        self._http.run(sockets=[self._socket])

    def _open_run(self) -> None:
        self._run = self._state.create_run(
            "medfed/medfed", "1", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        task = self._state.get_run_info(run_ids=[self._run])[0].primary_task_id
        if task is None or self._state.claim_task(task) is None or not self._state.activate_task(task):
            raise RunError("Flower did not open the run", where=f"run {self._run}", hint="see server.log")
        self._task = task
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def _keep_alive(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._state.acknowledge_task_heartbeat(self._task)

    def _send(self, site: str, letter: Envelope, seconds: float) -> str:
        """Store a message for ``site`` and return its id."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self._run, SUPERLINK_NODE_ID, self._task
        kept = seconds + LATE_SECONDS
        message = Message(_content(letter), self._nodes[site], "query.medfed", ttl=kept, group_id=letter.kind)
        message.metadata.__dict__["_message_id"] = message.object_id
        with no_object_id_recompute():
            session = self._state.start_session(self._run)
            stored, missing = self._state.store_message_and_object_tree(
                remove_content_from_message(message), get_object_tree(message), session
            )
            for name, part in get_all_nested_objects(message).items() if stored else ():
                if name in missing:
                    self._state.store_object(self._run, session, name, part.deflate())
        return message.metadata.message_id

    def _collect(self, message_ids: set[str]) -> Iterator[tuple[str, Envelope | Lost]]:
        """Yield (message id, answer) of the answers that are there."""
        if not message_ids:
            return
        for reply in self._state.get_message_res(message_ids - self._arriving.keys(), self._run):
            self._arriving[reply.metadata.reply_to_message_id] = None if reply.has_error() else reply
        for asked in sorted(message_ids & self._arriving.keys()):
            arriving = self._arriving[asked]
            answer = Lost(UNAVAILABLE) if arriving is None else self._fetched(arriving.metadata.message_id)
            if answer is not None:
                del self._arriving[asked]
                self._state.delete_messages({asked})
                yield asked, answer

    def _fetched(self, message_id: str) -> Envelope | Lost | None:
        """Return a reply's content, or None while it is still arriving; nothing waits for one site alone."""
        store = self._state.object_store
        try:
            names = [part.object_id for part in iterate_object_tree(store.get_object_tree(message_id))]
            contents = {name: self._state.get_object(self._run, name) for name in names}
            if all(content is not None for content in contents.values()) and not all(contents.values()):
                return None
            answer = _opened(message_id, {name: content or b"" for name, content in contents.items()})
        except Exception as error:  # a site can send any bytes: whatever they break is its failure alone
            answer = Lost(f"its answer did not arrive whole: {type(error).__name__}")
        store.delete(message_id)
        return answer


class FlowerSite:
    """A site's connection: it calls out to the server, proves its key, beats, and answers messages one by one.

    Args:
        address: ``host:port`` of the server.
        ca: certificate authority of the server, PEM.
        private_key: of this node.
        log: a file for Flower's own lines.
    """

    def __init__(self, address: str, ca: bytes, private_key: ec.EllipticCurvePrivateKey, log: Path) -> None:
        _log_to(log)
        self._address, self._ca, self._private_key = address, ca, private_key
        self._stopped = threading.Event()
        self._heard = 0.0

    def stop(self) -> None:
        """Let :meth:`serve` return after the message it is at."""
        self._stopped.set()

    def serve(
        self, answer: Callable[[Envelope], Envelope], tell: Callable[[str], None], *, patience_seconds: float
    ) -> None:
        """Answer messages until :meth:`stop`; a lost connection is tried again for ``patience_seconds``.

        Args:
            answer: turns a message into its answer; it must not raise.
            tell: is given lines for a person: connected, lost, trying again.
            patience_seconds: without any contact for so long, give up.

        Raises:
            RunError: the server cannot be reached, or its certificate or this site's key is refused.
        """
        self._heard, pause = time.monotonic(), POLL_SECONDS
        while not self._stopped.is_set():
            try:
                with self._connected(self._persistence(tell, patience_seconds)) as link:
                    tell(f"connected to {self._address}")
                    self._heard, pause = time.monotonic(), POLL_SECONDS
                    self._answer_all(link, answer)
            except (httpx.HTTPError, OSError, _GoneError, _RefusedError, ObjectPullError, ObjectPushError) as error:
                self._give_up(error, time.monotonic() - self._heard, patience_seconds)
                # A key that a process held which died is free before the server takes the site for gone: be there then.
                longest = HEARTBEAT_SECONDS / 4 if isinstance(error, _RefusedError) else HEARTBEAT_SECONDS
                pause = min(pause * 2, longest)
                tell(f"{_why(error)}; trying again in {pause:g} s")
                self._stopped.wait(pause)

    def _persistence(self, tell: Callable[[str], None], patience_seconds: float) -> RetryInvoker:
        """Return how a request is repeated when the network fails: with back-off, as long as the patience lasts."""

        def heard(state: RetryState) -> None:
            self._heard = time.monotonic()
            if state.tries > 1:
                tell(f"the network is back after {state.elapsed_time:.0f} s")

        def failed(state: RetryState) -> None:
            if state.tries == 1 and state.exception is not None:
                tell(f"{_why(state.exception)}; trying again")

        return _repeating(patience_seconds, heard, failed)

    def _give_up(self, error: Exception, silent: float, patience_seconds: float) -> None:
        """Raise if trying again is in vain, after ``silent`` seconds without contact."""
        where = f"server {self._address}"
        if _is_tls(error):
            hint = "compare the fingerprint of its certificate authority with the server's people; nothing was sent"
            raise RunError(f"its certificate is refused: {_why(error)}", where=where, hint=hint) from error
        if isinstance(error, _RefusedError) and silent > REFUSED_SECONDS:
            hint = "let the server's people register this site's public key; run one process per key"
            raise RunError("it does not know this site's key, or the key is in use", where=where, hint=hint) from error
        if silent > patience_seconds:
            hint = "ask whether the server runs; run `medfed site doctor` here"
            raise RunError(f"no contact for {silent:.0f} s: {_why(error)}", where=where, hint=hint) from error

    def _answer_all(self, link: _Link, answer: Callable[[Envelope], Envelope]) -> None:
        pause = POLL_SECONDS
        while not self._stopped.is_set():
            if link.lost.is_set():
                raise _GoneError("the server does not hear this site's heartbeats")
            message = link.receive()
            if message is None:
                pause = min(pause * 1.5, SLOWEST_POLL_SECONDS)
                self._stopped.wait(pause)
                continue
            pause = POLL_SECONDS
            try:
                letter = _letter(message)
            except Exception as error:
                raise _GoneError(f"a letter that is none: {type(error).__name__}") from error
            link.reply(message, answer(letter))

    @contextlib.contextmanager
    def _connected(self, persistence: RetryInvoker) -> Iterator[_Link]:
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(self._private_key, self._private_key.public_key()),
        ]
        with FleetHttpClient.from_server_address(self._address, False, self._ca, interceptors) as client:
            link = _Link(client, public_key_to_bytes(self._private_key.public_key()), persistence)
            try:
                yield link
            finally:
                link.close()


class _GoneError(Exception):
    """The server forgot this connection, or its run is over: connect anew."""


class _RefusedError(Exception):
    """The server does not admit the key, or not yet: a process that held it before may have died just now."""


class _Link:
    """One activated connection: messages in, replies out, heartbeats beside."""

    def __init__(self, client: FleetHttpClient, public_key: bytes, persistence: RetryInvoker) -> None:
        self._client, self._public_key, self._persistence = client, public_key, persistence
        self._node = self._activated()
        self.lost, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def receive(self) -> Message | None:
        """Return the next message, whole, or None."""
        tries = 0

        def pull() -> PullMessagesResponse:
            nonlocal tries
            tries += 1
            return self._client.PullMessages(PullMessagesRequest(node=self._node))

        found = self._persistence.invoke(pull)
        if not found.messages_list:
            if tries > 1:
                self._renew()
            return None
        envelope, tree = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        run = envelope.metadata.run_id
        names = [part.object_id for part in iterate_object_tree(tree)]
        contents = pull_objects(names, make_pull_object_fn_protobuf(_again(self._client.PullObject), self._node, run))
        confirm = _again(self._client.ConfirmMessageReceived)
        make_confirm_message_received_fn_protobuf(confirm, self._node, run)(tree.object_id)
        message = inflate_object_from_contents(tree.object_id, contents)
        if not isinstance(message, Message):
            raise _GoneError("a message that is none")
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def reply(self, message: Message, letter: Envelope) -> None:
        """Send the answer to ``message``."""
        reply = Message(_content(letter), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        run = message.metadata.run_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
            )
            response = self._persistence.invoke(self._client.PushMessages, request)
            send = _again(self._client.PushObject)
            push = make_push_object_fn_protobuf(send, self._node, run, response.session_id)
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(response.objects_to_push))

    def close(self) -> None:
        """Say goodbye."""
        self._closed.set()
        with contextlib.suppress(httpx.HTTPError, RuntimeError):
            self._deactivate()

    def _renew(self) -> None:
        """Connect anew, so that the server sends again what was lost on its way here."""
        with contextlib.suppress(httpx.HTTPStatusError):  # it had taken this site for gone
            self._deactivate()
        self._node = self._activated()

    def _activated(self) -> Node:
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_SECONDS)
        try:
            return Node(node_id=self._client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as error:
            raise _RefusedError(f"the server answered {error.response.status_code}") from error

    def _deactivate(self) -> None:
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
            try:
                heard = self._client.SendNodeHeartbeat(request).success
            except httpx.TransportError:
                continue  # the next message tells whether it is back
            except httpx.HTTPError:
                heard = False
            if not heard:
                self.lost.set()
                return


def _opened(message_id: str, contents: dict[str, bytes]) -> Envelope | Lost:
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message) or not message.has_content():
        return Lost("an empty answer")
    return _letter(message)


def _content(letter: Envelope) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(letter.payload),), stype="bytes", data=letter.payload)
    facts = ConfigRecord({"kind": letter.kind, **letter.facts})
    return RecordDict({"payload": ArrayRecord({"bytes": array}), "facts": facts})


def _letter(message: Message) -> Envelope:
    facts = {name: str(value) for name, value in message.content.config_records["facts"].items()}
    return Envelope(facts.pop("kind", ""), facts, message.content.array_records["payload"]["bytes"].data)


def _listen(host: str, port: int) -> socket.socket:
    """Bind now, so that a taken port is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RunError(
            f"cannot listen: {error.strerror}", where=f"{host}:{port}", hint="stop what listens there, or change port"
        ) from error
    return listener


def _log_to(path: Path) -> None:
    """Send the lines of Flower and its web server to a file; they name nodes and messages, never data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("flwr", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answered {error.response.status_code}"
    return str(error) or type(error).__name__


def _repeating(
    seconds: float,
    heard: Callable[[RetryState], None] | None = None,
    failed: Callable[[RetryState], None] | None = None,
) -> RetryInvoker:
    """Return what repeats a request when the network fails, with back-off, for so many seconds."""
    return RetryInvoker(
        lambda: exponential(POLL_SECONDS, 2, int(HEARTBEAT_SECONDS)),
        httpx.HTTPError,
        max_tries=None,
        max_time=seconds,
        on_success=heard,
        on_backoff=failed,
        jitter=None,
        should_giveup=_is_final,
    )


def _again(call: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """Return ``call``, repeated for a while when the network fails."""
    invoker = _repeating(RETRY_SECONDS)

    def persistent(request: Request) -> Response:
        return invoker.invoke(call, request)  # type: ignore[no-any-return]

    return persistent


def _is_final(error: Exception) -> bool:
    """Whether the same request would fail again: the server, or an impostor, has answered."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code not in (502, 503, 504)
    return _is_tls(error)


def _is_tls(error: Exception) -> bool:
    """Whether this is not the server that the certificate authority vouches for; a cut in the handshake is not that."""
    text = str(error).lower()
    return isinstance(error, httpx.ConnectError) and "eof" not in text and ("certificate" in text or "ssl" in text)
