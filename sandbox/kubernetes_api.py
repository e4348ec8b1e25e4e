"""The API server of a cluster: requests, long answers, and what its errors mean."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config

from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    InvalidArgumentError,
    NotFoundError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TimeoutError_,
)
from sandbox.kubernetes_pod import KubernetesOptions

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 30.0
HEARTBEAT_S = 30.0
ATTEMPTS = 4
MOST_RETRY_S = 5.0
CHANNELS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
INSTALL = (
    "Give the server a kubeconfig file or run it in the cluster with an account of its own"
    " (deploy/kubernetes/access.yaml)."
)


class StatusError(Exception):
    """What the API server refuses: HTTP status, its one-word reason, and its sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Api:
    """Speaks to one cluster with one account. Credentials that expire are loaded anew."""

    def __init__(self, options: KubernetesOptions) -> None:
        self._options = options
        self._configuration = Configuration()
        # Every sandbox holds one connection, and the client would stop at a hundred.
        self._configuration.connection_pool_maxsize = 0
        # Authorities that clusters make for themselves lack what Python 3.13 is strict about.
        self._configuration.disable_strict_ssl_verification = True
        self._client: ApiClient | None = None

    async def start(self) -> None:
        """Load the credentials. Raises DriverUnavailableError."""
        try:
            await self._load()
            self._client = ApiClient(self._configuration)
        except (ConfigException, OSError, ssl.SSLError, ValueError, AssertionError) as error:
            raise DriverUnavailableError(
                f"No Kubernetes cluster is configured. {INSTALL}", engine=str(error)[:200]
            ) from error

    async def _load(self) -> None:
        options = self._options
        if options.kubeconfig is None and options.context is None:
            try:
                load_incluster_config(self._configuration)  # type: ignore[no-untyped-call]
            except ConfigException:
                log.debug("not within a cluster")
            else:
                return
        await load_kube_config(
            config_file=options.kubeconfig,
            context=options.context,
            client_configuration=self._configuration,
            persist_config=False,
        )

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    @property
    def _started(self) -> ApiClient:
        if self._client is None:
            raise DriverUnavailableError("The Kubernetes driver is not started.")
        return self._client

    async def _arguments(self, accept: str = "application/json") -> dict[str, Any]:
        client = self._started
        headers = {"Accept": accept, "User-Agent": "noosphere"}
        await client.update_params_for_auth(headers, [], ["BearerToken"])
        configuration = self._configuration
        arguments: dict[str, Any] = {"headers": headers}
        if configuration.proxy:
            arguments |= {
                "proxy": configuration.proxy,
                "proxy_headers": configuration.proxy_headers,
            }
        if configuration.tls_server_name:
            arguments["server_hostname"] = configuration.tls_server_name
        return arguments

    def _url(self, path: str) -> str:
        return f"{(self._configuration.host or '').rstrip('/')}{path}"

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """One object of JSON. Raises StatusError, and errors of the connection as they are.

        Tried again only where the server did nothing: when it asks for patience, and once when
        the credentials have expired.
        """
        renewed = False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._once(method, path, params, body, content_type)
            except StatusError as error:
                if error.status == 401 and not renewed:
                    renewed = True
                    await self._renew(error)
                elif error.status == 429 and attempt < ATTEMPTS:
                    await asyncio.sleep(min(float(error.reason or 1), MOST_RETRY_S))
                else:
                    raise
        raise AssertionError("The last attempt returns or raises.")

    async def _renew(self, error: StatusError) -> None:
        """Load the credentials anew: those of exec plug-ins live for minutes."""
        try:
            await self._load()
        except Exception as failed:  # Plug-ins are programs of others.
            raise error from failed

    async def _once(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Any,
        content_type: str,
    ) -> dict[str, Any]:
        arguments = await self._arguments()
        if body is not None:
            arguments["data"] = json.dumps(body).encode()
            arguments["headers"]["Content-Type"] = content_type
        async with self._started.rest_client.pool_manager.request(
            method,
            self._url(path),
            params=params,
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            allow_redirects=False,
            **arguments,
        ) as response:
            data = await response.read()
            if response.status == 429:
                # The reason carries how long to wait: nobody needs another one here.
                wait = response.headers.get("Retry-After", "1")
                raise StatusError(429, wait if wait.isdigit() else "1", _sentence(data))
            if not 200 <= response.status < 300:
                raise _status_error(response.status, data)
            return _object(data)

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], *, silence_s: float
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """A long answer, given up when nothing comes for `silence_s`. Raises StatusError."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=silence_s
        )
        async with self._started.rest_client.pool_manager.get(
            self._url(path), params=params, timeout=timeout, **await self._arguments()
        ) as response:
            if response.status != 200:
                raise _status_error(response.status, await response.read())
            yield response.content

    async def attach(self, path: str, params: Mapping[str, str]) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket of streams. Raises StatusError where the upgrade is refused."""
        try:
            socket = await self._attach(path, params)
        except StatusError as error:
            if error.status != 401:
                raise
            await self._renew(error)
            socket = await self._attach(path, params)
        if socket.protocol not in CHANNELS:
            await socket.close()
            raise StatusError(501, "", "It speaks none of the protocols of streams.")
        return socket

    async def _attach(
        self, path: str, params: Mapping[str, str]
    ) -> aiohttp.ClientWebSocketResponse:
        arguments = await self._arguments("*/*")
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                socket: aiohttp.ClientWebSocketResponse
                socket = await self._started.rest_client.pool_manager.ws_connect(
                    self._url(path),
                    params=params,
                    protocols=CHANNELS,
                    heartbeat=HEARTBEAT_S,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                    **arguments,
                )
                return socket
        except aiohttp.WSServerHandshakeError as error:
            raise StatusError(error.status, "", error.message) from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise aiohttp.ClientPayloadError("The API server did not answer with an object.")
    return value


def _sentence(data: bytes) -> str:
    return str(_status_error(0, data).message)


def _status_error(status: int, data: bytes) -> StatusError:
    try:
        value = json.loads(data)
        return StatusError(status, str(value.get("reason", "")), str(value.get("message", "")))
    except (ValueError, AttributeError):
        return StatusError(status, "", data[:500].decode("utf-8", "replace"))


class answers:  # noqa: N801 - reads as a verb where it is used.
    """Puts the cluster's complaints into our words."""

    def __init__(self, what: str) -> None:
        self._what = what

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, StatusError):
            raise translate(error, self._what) from error
        if isinstance(error, TimeoutError):
            raise TimeoutError_(f"The cluster did not {self._what} in time.") from error
        if isinstance(error, aiohttp.ClientError | OSError):
            raise DriverUnavailableError("The Kubernetes API server does not answer.") from error


def translate(error: StatusError, what: str) -> SandboxError:
    """The API server's error as one of ours, without paths of hosts."""
    message = error.message[:500]
    if error.status == 401:
        return DriverUnavailableError(f"The cluster does not accept our credentials. {INSTALL}")
    if error.status == 403:
        return _forbidden(message, what)
    if error.status == 404:
        if "namespaces" in message:
            return DriverUnavailableError(
                "The cluster lacks the namespace for sandboxes; install"
                " deploy/kubernetes/namespace.yaml.",
                engine=message,
            )
        return NotFoundError("There is no such sandbox.")
    if error.status == 409:
        return ConflictError(f"The cluster cannot {what}.", state="conflict", engine=message)
    if error.status in (400, 422):
        return InvalidArgumentError(f"The cluster refuses to {what}.", engine=message)
    if error.status == 429:
        return ResourceExhaustedError(
            "The cluster is busy; try again later.", resource=Resource.HOST
        )
    return DriverUnavailableError(f"The cluster failed to {what}.", engine=message)


def _forbidden(message: str, what: str) -> SandboxError:
    if "exceeded quota" in message or "usage per" in message:
        return ResourceExhaustedError(
            "The cluster's quota for sandboxes does not allow another one like this.",
            resource=Resource.QUOTA,
            engine=message,
        )
    if "violates PodSecurity" in message:
        return PolicyUnsupportedError(
            "The cluster's security standard forbids the sandbox.", engine=message
        )
    if "RuntimeClass" in message:
        return DriverUnavailableError("The cluster lacks the RuntimeClass.", engine=message)
    return DriverUnavailableError(
        f"This account may not {what}; install deploy/kubernetes/access.yaml.", engine=message
    )
