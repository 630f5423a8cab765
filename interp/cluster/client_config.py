"""From a kubeconfig, or from inside a pod, to a connection: the server, its pool of connections, and who asks.

What the `kubernetes` package says about a broken kubeconfig may quote it, tokens and all: its words are never passed
on, nor YAML's. The package costs half a second to import, so it is imported by who calls.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from interp.errors import ClusterError


@dataclass(frozen=True)
class Connection:
    """`pool` is urllib3's, with TLS and proxy as the kubeconfig says; `context` is None inside a pod."""

    server: str
    context: str | None
    pool: Any
    configuration: Any

    def headers(self) -> dict[str, str]:
        """Who asks: looked up for each request, since tokens are renewed while the program runs."""
        # A plugin that fails now leaves the old token, and the server says what it thinks of it.
        with _failed_plugins():
            found = self.configuration.auth_settings().get("BearerToken")
        return {found["key"]: found["value"]} if found and found["value"] else {}


def connect(context: str | None) -> Connection:
    """The connection that $KUBECONFIG, ~/.kube/config or this pod's service account gives; no request is made yet.

    Raises:
        ClusterError: there is no kubeconfig, or it cannot be used.
    """
    from kubernetes.client import Configuration
    from kubernetes.client.rest import RESTClientObject

    configuration = Configuration()
    paths = os.environ.get("KUBECONFIG") or "~/.kube/config"
    found = [path for path in map(Path, filter(None, paths.split(os.pathsep))) if path.expanduser().exists()]
    if found:
        context = _from_files(configuration, os.pathsep.join(str(path.expanduser()) for path in found), context)
    elif os.environ.get("KUBERNETES_SERVICE_HOST") and "KUBECONFIG" not in os.environ and context is None:
        _from_pod(configuration)
    else:
        raise ClusterError(
            "there is no kubeconfig",
            value=paths,
            expected="a file that says how to reach the cluster",
            remedy="set KUBECONFIG, or get one by your cloud's login command; for kind: kind export kubeconfig",
        )
    # One retry policy only, ours; and a connection that died without a word is noticed.
    configuration.retries = False
    configuration.socket_options = _keepalive()
    if urlsplit(configuration.host).hostname in ("localhost", "127.0.0.1", "::1"):
        # A proxy does not reach this machine's own loopback; kubectl does not ask it either.
        configuration.proxy = None
    try:
        pool = RESTClientObject(configuration).pool_manager
    except (OSError, ValueError) as error:
        raise _unusable(context, "its certificates cannot be read") from error
    return Connection(configuration.host, context, pool, configuration)


def _from_files(configuration: Any, paths: str, context: str | None) -> str:
    import yaml
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    try:
        config = KubeConfigMerger(paths).config
        contexts = [entry["name"] for entry in config.value["contexts"]]
        current = config.value.get("current-context")
    except (ConfigException, yaml.YAMLError, OSError, KeyError, TypeError, AttributeError, ValueError):
        # `from None`: the cause may quote the file.
        raise ClusterError(
            "the kubeconfig is not one",
            value=paths,
            expected="YAML with contexts, clusters and users",
            remedy="see `kubectl config view`, or get it anew",
        ) from None
    wanted = context or current
    if wanted not in contexts:
        raise ClusterError(
            f"the kubeconfig has no context {wanted}" if wanted else "the kubeconfig has no current context",
            value=paths,
            expected=f"one of {', '.join(contexts)}" if contexts else "a file with contexts",
            remedy="correct `context` of the profile, or: kubectl config use-context NAME",
        )
    try:
        loader = KubeConfigLoader(config, active_context=wanted, config_base_path=None)
        with _failed_plugins() as failures:
            loader.load_and_set(configuration)
    except (ConfigException, OSError, KeyError, TypeError, AttributeError, ValueError):
        raise _unusable(wanted, _what_is_missing(config, wanted)) from None
    entry = _named(config, "contexts", wanted).get("context", {})
    user = _named(config, "users", entry.get("user")).get("user") or {}
    if "exec" in user and failures:
        raise _plugin_failed(wanted, user["exec"])
    cluster = _named(config, "clusters", entry.get("cluster")).get("cluster") or {}
    if proxy := cluster.get("proxy-url"):
        configuration.proxy = proxy
    return str(wanted)


def _from_pod(configuration: Any) -> None:
    from kubernetes.config import ConfigException
    from kubernetes.config.incluster_config import load_incluster_config

    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException:
        raise ClusterError(
            "this pod has no service account token",
            expected="a token in /var/run/secrets/kubernetes.io/serviceaccount",
            remedy="let the pod have one (automountServiceAccountToken: true), or set KUBECONFIG",
        ) from None


def _named(config: Any, section: str, name: str | None) -> dict[str, Any]:
    for entry in config.value.get(section) or ():
        value = getattr(entry, "value", entry)
        if value.get("name") == name:
            return dict(value)
    return {}


def _what_is_missing(config: Any, context: str) -> str:
    entry = _named(config, "contexts", context).get("context") or {}
    for section, part in (("clusters", "cluster"), ("users", "user")):
        if entry.get(part) and not _named(config, section, entry[part]):
            return f"its {part} {entry[part]} is not in the file"
    return "a field is missing, or a file that it names is not there"


def _unusable(context: str | None, why: str) -> ClusterError:
    return ClusterError(
        f"context {context} of the kubeconfig cannot be used: {why}",
        expected="a cluster with a server, and a user with a token, a certificate or a plugin",
        remedy=f"see `kubectl config view --minify --context {context}`, or get the kubeconfig anew",
    )


def _plugin_failed(context: str, plugin: dict[str, Any]) -> ClusterError:
    """The plugin's arguments and output are not shown: they may hold secrets."""
    command = str(plugin.get("command", ""))
    hint = str(plugin.get("installHint") or "").strip()
    if shutil.which(command) is None:
        return ClusterError(
            f"the kubeconfig's login plugin is not installed: {command}",
            value=f"context {context}",
            expected=f"{command} in PATH",
            remedy=hint or f"install {command}, or use a kubeconfig with a token",
        )
    return ClusterError(
        f"the kubeconfig's login plugin failed: {command}",
        value=f"context {context}",
        remedy=f"`kubectl --context {context} get --raw /version` shows what it says; most often: log in again",
    )


@contextmanager
def _failed_plugins() -> Iterator[list[int]]:
    """The `kubernetes` package only logs that a plugin failed, to the root logger, with all that it said."""
    failures: list[int] = []

    def caught(record: logging.LogRecord) -> bool:
        failures.append(record.levelno)
        return False

    root, silent = logging.getLogger(), logging.NullHandler()
    root.addFilter(caught)
    root.addHandler(silent)
    try:
        yield failures
    finally:
        root.removeFilter(caught)
        root.removeHandler(silent)


def _keepalive() -> list[tuple[int, int, int]]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
