"""What a sandbox may use and reach: wishes checked against the configuration and the driver."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.sandboxes import SandboxTemplate
from sandbox.addresses import parse_ranges
from sandbox.errors import InvalidArgumentError
from sandbox.limits import HEADROOM_BYTES, MIB, Limits
from sandbox.network_rules import guarded
from sandbox.policy import NetworkPolicy, NetworkRule, Policy
from services.errors import UserError, UserErrorCode, UserErrors
from services.options import Options

MIN_CPU_MILLIS = 50
MIN_MEMORY_BYTES = 96 * MIB
MIN_DISK_BYTES = MIB
MIN_PIDS, MAX_PIDS = 8, 4096
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_ENV_BYTES = 65_536
NO_NETWORK, ALLOW_LIST = "none", "allow_list"
MIN_NETWORK_BYTES_PER_S = 1024
MAX_NETWORK_RULES = 200


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits asked for; None takes the template's or the configured default."""

    cpu_millis: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    pids: int | None = None
    network_bytes_per_second: int | None = None


@dataclass(frozen=True, slots=True)
class Security:
    """Policy asked for; with the network `allow_list`, `rules` name what may be reached.

    Of the rest everything but `env_variables` must be the default to be accepted.
    """

    network: str = NO_NETWORK
    rules: Sequence[NetworkRule] = ()
    syscalls: Sequence[str] = ()
    mounts: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    env_variables: Mapping[str, str] = field(default_factory=dict)


def _refuse(errors: list[UserError], code: UserErrorCode, message: str, *path: str) -> None:
    errors.append(UserError(code, message, path))


def limits(
    options: Options,
    template: SandboxTemplate,
    given: Resources,
    *,
    is_networked: bool = False,
) -> Limits:
    """Give the limits of a new sandbox; `is_networked` says that it may reach a network.

    Raises UserErrors: INVALID below a minimum or for what the driver cannot enforce, LIMIT above a
    maximum, each naming its path below `resources`.
    """
    values = _values(options, template.resource_config or {}, given, is_networked=is_networked)
    most = _most_disk(options, values)
    if values["disk_bytes"] > most:
        if given.disk_bytes is not None:
            raise _too_much_disk(values, most)
        values["disk_bytes"] = most
    return Limits(**values, network_bytes_per_s=given.network_bytes_per_second)


def changed(
    options: Options,
    before: Mapping[str, int],
    given: Resources,
    *,
    is_networked: bool = False,
) -> dict[str, int]:
    """Give the limits a live sandbox shall have: those it has, but for what is given.

    Raises UserErrors as `limits` does.
    """
    values = _values(options, before, given, is_networked=is_networked)
    most = _most_disk(options, values)
    if values["disk_bytes"] > most:
        raise _too_much_disk(values, most)
    return values


def _values(
    options: Options, defaults: Mapping[str, Any], given: Resources, *, is_networked: bool
) -> dict[str, int]:
    errors: list[UserError] = []
    ranges = {
        "cpu_millis": (options.sandbox_cpu_millis, MIN_CPU_MILLIS, options.sandbox_max_cpu_millis),
        "memory_bytes": (
            options.sandbox_memory_bytes,
            MIN_MEMORY_BYTES,
            options.sandbox_max_memory_bytes,
        ),
        "disk_bytes": (
            options.sandbox_disk_bytes,
            MIN_DISK_BYTES,
            options.sandbox_max_disk_bytes,
        ),
        "pids": (options.sandbox_pids, MIN_PIDS, MAX_PIDS),
    }
    values: dict[str, int] = {}
    for name, (default, low, high) in ranges.items():
        wanted = getattr(given, name)
        values[name] = int(defaults.get(name, default)) if wanted is None else wanted
        error = _out_of_range(wanted, name, low, high)
        if error is not None:
            errors.append(error)
    rate = given.network_bytes_per_second
    if rate is not None and (not is_networked or rate < MIN_NETWORK_BYTES_PER_S):
        _refuse(
            errors,
            UserErrorCode.INVALID,
            f"A network limit is at least {MIN_NETWORK_BYTES_PER_S:,} bytes a second."
            if is_networked
            else "A network limit needs a sandbox that may reach a network; leave it out.",
            "resources",
            "network_bytes_per_second",
        )
    if errors:
        raise UserErrors(errors)
    return values


def template_limits(options: Options, given: Resources | None) -> dict[str, int] | None:
    """Give what a template says of limits: only what is given. Raises UserErrors as `limits`."""
    if given is None:
        return None
    _values(options, {}, given, is_networked=False)
    said = {name: getattr(given, name) for name in _ITEMS}
    return {name: value for name, value in said.items() if value is not None} or None


def template_env(variables: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Give what a template says of the environment. Raises UserErrors INVALID and LIMIT."""
    if not variables:
        return None
    errors = [
        UserError(error.code, error.message, ("env_variables",)) for error in _env_errors(variables)
    ]
    if errors:
        raise UserErrors(errors)
    return {"env_variables": dict(variables)}


def _too_much_disk(values: Mapping[str, int], most: int) -> UserError:
    return UserError(
        UserErrorCode.INVALID,
        f"With {values['memory_bytes']:,} bytes of memory the disk may have at most "
        f"{most:,} bytes, because files count as memory; {values['disk_bytes']:,} is more.",
        ("resources", "disk_bytes"),
    )


# What drivers call the limits that people ask for.
_ITEMS = {
    "cpu_millis": "cpu",
    "memory_bytes": "memory",
    "disk_bytes": "disk",
    "pids": "pids",
}


def demanded(given: Resources) -> frozenset[str]:
    """Give the limits somebody asked for, as drivers call them: these must hold."""
    return frozenset(item for name, item in _ITEMS.items() if getattr(given, name) is not None)


def _out_of_range(value: int | None, name: str, low: int, high: int) -> UserError | None:
    if value is None or low <= value <= high:
        return None
    code = UserErrorCode.INVALID if value < low else UserErrorCode.LIMIT
    return UserError(
        code,
        f"{name.replace('_', ' ').capitalize()} must be between {low:,} and {high:,}; "
        f"{value:,} is not.",
        ("resources", name),
    )


def _most_disk(options: Options, values: Mapping[str, int]) -> int:
    """Give the largest workspace a sandbox with such limits can have (see `Limits.check`)."""
    if options.sandbox_disk != "memory":
        return options.sandbox_max_disk_bytes
    memory_bytes = values["memory_bytes"]
    return memory_bytes - HEADROOM_BYTES - Limits(memory_bytes=memory_bytes).tmp_bytes


def policy(options: Options, given: Security, *, driver: str) -> Policy:
    """Give the policy of a new sandbox.

    Raises UserErrors INVALID for whatever the driver cannot enforce and for malformed variables:
    a policy is refused, never ignored.
    """
    errors: list[UserError] = []
    wishes = {
        "syscalls": bool(given.syscalls),
        "mounts": bool(given.mounts),
        "capabilities": bool(given.capabilities),
    }
    errors += _network_errors(options, given.network, given.rules)
    for name, is_special in wishes.items():
        if is_special:
            _refuse(
                errors,
                UserErrorCode.INVALID,
                f"A policy for {name} other than the default cannot be enforced by driver "
                f"{driver}; leave it out.",
                "security",
                name,
            )
    errors += _env_errors(given.env_variables)
    if errors:
        raise UserErrors(errors)
    return Policy(_network(given.network, given.rules), dict(given.env_variables))


def network(options: Options, mode: str, rules: Sequence[NetworkRule]) -> NetworkPolicy:
    """Give what a sandbox may reach from now on.

    Raises UserErrors INVALID and LIMIT for `network` and below `network_rules`.
    """
    if errors := _network_errors(options, mode, rules):
        raise UserErrors([UserError(e.code, e.message, e.path[1:]) for e in errors])
    return _network(mode, rules)


def _network(mode: str, rules: Sequence[NetworkRule]) -> NetworkPolicy:
    if mode.lower() == NO_NETWORK:
        return NetworkPolicy()
    return NetworkPolicy("allow", tuple(rules))


def _network_errors(options: Options, mode: str, rules: Sequence[NetworkRule]) -> list[UserError]:
    place, errors = ("security", "network_rules"), list[UserError]()
    if mode.lower() == NO_NETWORK:
        if rules:
            _refuse(errors, UserErrorCode.INVALID, "Rules need the network `ALLOW_LIST`.", *place)
        return errors
    if mode.lower() != ALLOW_LIST or not options.sandbox_network_allowed:
        _refuse(
            errors,
            UserErrorCode.INVALID,
            "This server lets no sandbox reach a network; leave it out, or ask its operator.",
            "security",
            "network",
        )
        return errors
    if len(rules) > MAX_NETWORK_RULES:
        _refuse(
            errors, UserErrorCode.LIMIT, f"At most {MAX_NETWORK_RULES} rules are possible.", *place
        )
        return errors
    for at, rule in enumerate(rules):
        try:
            rule.check()
        except InvalidArgumentError as error:
            _refuse(errors, UserErrorCode.INVALID, error.message, *place, str(at))
    private = parse_ranges(options.sandbox_network_private)
    for rule in guarded(rules, private):
        _refuse(
            errors,
            UserErrorCode.INVALID,
            f"{rule.host} is not an address of the Internet, and this server does not let "
            "sandboxes reach it; ask its operator.",
            *place,
            str(list(rules).index(rule)),
        )
    return errors


def execution_env(variables: Mapping[str, str] | None) -> dict[str, str] | None:
    """Give the environment of one execution. Raises UserErrors INVALID and LIMIT."""
    if not variables:
        return None
    errors = [
        UserError(error.code, error.message, ("environment",)) for error in _env_errors(variables)
    ]
    if errors:
        raise UserErrors(errors)
    return dict(variables)


def _env_errors(variables: Mapping[str, str]) -> list[UserError]:
    errors: list[UserError] = []
    place = ("security", "env_variables")
    for name, value in variables.items():
        shown = name[:64].encode("ascii", "replace").decode().replace("\0", "?")
        if not _ENV_NAME.match(name):
            _refuse(
                errors,
                UserErrorCode.INVALID,
                f"`{shown}` cannot name an environment variable: use up to 128 letters, digits and "
                "underscores, not beginning with a digit.",
                *place,
            )
        elif "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            _refuse(
                errors,
                UserErrorCode.INVALID,
                f"The value of {shown} contains a NUL or invalid character; remove it.",
                *place,
            )
    if not errors:
        size = sum(len(name) + len(value.encode()) for name, value in variables.items())
        if size > _ENV_BYTES:
            _refuse(
                errors,
                UserErrorCode.LIMIT,
                f"The environment has {size:,} bytes; at most {_ENV_BYTES:,} are allowed.",
                *place,
            )
    return errors


def lifetime(options: Options, timeout_s: int | None) -> int:
    """Give the life of a sandbox in seconds. Raises UserError INVALID or LIMIT."""
    return seconds(
        timeout_s,
        "timeout_seconds",
        default=options.sandbox_ttl_s,
        most=options.sandbox_max_ttl_s,
    )


def idle_timeout(options: Options, value: int | None) -> int | None:
    """Give after how many seconds without use a sandbox ends or pauses; None: never.

    Raises UserError INVALID or LIMIT.
    """
    if value is None:
        return None
    return seconds(value, "idle_timeout_seconds", default=value, most=options.sandbox_max_ttl_s)


def seconds(value: int | None, name: str, *, default: int, most: int) -> int:
    """Give a duration of 1 to `most` seconds. Raises UserError INVALID below, LIMIT above."""
    if value is None:
        return min(default, most)
    if not 1 <= value <= most:
        raise UserError(
            UserErrorCode.INVALID if value < 1 else UserErrorCode.LIMIT,
            f"The time must be between 1 and {most:,} seconds; {value:,} is not.",
            (name,),
        )
    return value
