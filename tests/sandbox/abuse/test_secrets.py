"""What the host and other sandboxes keep to themselves, and what nobody may write."""

import asyncio
import os
import uuid
from contextlib import aclosing

import pytest

from tests.sandbox.abuse.attack import Attempt, attempts, is_contained, tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")


def hunt(secret: str) -> str:
    """A program that counts where a secret stands in /proc.

    Only the text of the program itself may hold a word of it, so it is cut in two.
    """
    return f"""
import glob
secret = b'{secret[:16]}' + b'{secret[16:]}'
places = [f'/proc/{{p}}/{{w}}' for p in ('[0-9]*', '[0-9]*/task/*')
          for w in ('environ', 'cmdline', 'mountinfo', 'status', 'cgroup', 'mounts', 'maps')]
found = seen = 0
for place in [*places, '/proc/*']:
    for path in glob.glob(place):
        if os.path.basename(path) in ('kmsg', 'kcore') or not os.path.isfile(path):
            continue
        try:
            found += secret in open(path, 'rb').read(1 << 20)
            seen += 1
        except OSError:
            pass
print(found, seen > 10, secret in str(os.environ).encode())
"""


async def test_the_environment_of_the_server_is_nowhere(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = uuid.uuid4().hex
    monkeypatch.setenv("NOOSPHERE_SECRET_KEY", secret)
    assert await tries(await site.make(), hunt(secret)) == ["0", "True", "False"]
    assert secret in os.environ["NOOSPHERE_SECRET_KEY"]


async def test_the_environment_of_another_sandbox_is_nowhere(site: Site) -> None:
    secret = uuid.uuid4().hex
    keeper = await site.other.start(
        "echo $SECRET; read line", env={"SECRET": secret}, keep_stdin_open=True
    )
    async with aclosing(keeper.output()) as output, asyncio.timeout(30):
        assert (await anext(output)).data.decode().strip() == secret
    assert await tries(site.box, hunt(secret)) == ["0", "True", "False"]
    await keeper.cancel()
    await keeper.result()


def each(paths: str, work: str, expected: str) -> tuple[str, str]:
    """A program that tries `work` with every path, and what it must get each time."""
    listed = paths.split()
    text = f"for path in {listed!r}:\n    attempt(lambda: {work})"
    return text, " ".join([expected] * len(listed))


READ = "os.read(os.open(path, os.O_RDONLY), 1)"
WRITE = "os.write(os.open(path, os.O_WRONLY), b'1')"
NOT_READ = "ENOENT|EACCES|EPERM|ENOTDIR|EISDIR"
NOWHERE = "EROFS|EACCES|EPERM|ENOENT|ENOTDIR"


@attempts(
    Attempt("read keys and passwords of the host", *each("""
        /etc/shadow /root/.ssh/id_rsa /root/.bash_history /etc/sudoers
        /etc/ssh/ssh_host_rsa_key /proc/1/root/etc/shadow /proc/self/cwd/../../etc/shadow
        """, READ, NOT_READ)),
    Attempt("read what engines and clusters keep", *each("""
        /var/lib/docker/containers /run/secrets/kubernetes.io/serviceaccount/token
        /var/run/docker.pid /run/containerd/containerd.toml /etc/docker/daemon.json
        """, READ, NOT_READ)),
    Attempt("read devices", *each("""
        /dev/mem /dev/kmem /dev/port /dev/sda /dev/vda /dev/nvme0n1 /dev/kvm /dev/fuse
        /dev/net/tun /dev/vsock /dev/loop-control /dev/loop0 /dev/mapper/control
        """, READ, NOT_READ)),
    Attempt("read the kernel's inside", *each("""
        /boot/vmlinuz /sys/kernel/security/lsm /sys/kernel/debug/sched /sys/kernel/tracing/trace
        """, READ, NOT_READ)),
    Attempt("list the homes", "import glob\nprint(glob.glob('/root/*') + glob.glob('/root/.ssh/*')"
            " + [p for p in glob.glob('/home/*/*')])", "[]"),
    Attempt("list processes of the host",
            "print(sum(p.isdigit() for p in os.listdir('/proc')) <= 5)", "True"),
    Attempt("read addresses, logs and keys of the kernel",
            "for name in 'kallsyms kcore keys key-users kmsg timer_list config.gz sched_debug"
            " modules iomem ioports vmallocinfo slabinfo kpagecount kpageflags interrupts"
            " cmdline'.split():\n"
            "    try:\n        if open('/proc/' + name, 'rb').read(100): print('READ', name)\n"
            "    except OSError: pass\nprint('end')", "end"),
    Attempt("descriptors of the agent", "fds = os.listdir('/proc/self/fd')\n"
            "print(*sorted(map(int, fds))[:3], len(fds))", "0 1 2 4"),
)  # fmt: skip
async def test_nothing_of_the_host_is_read(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


async def test_devices_are_the_harmless_ones(box: Box) -> None:
    program = """
harmless = {'null', 'zero', 'full', 'random', 'urandom', 'tty', 'ptmx', 'console'}
for name in os.listdir('/dev'):
    mode = os.lstat('/dev/' + name).st_mode
    if (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and name not in harmless:
        print('DEVICE', name)
attempt(os.mknod, '/workspace/disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0))
attempt(os.mknod, '/tmp/mem', 0o600 | stat.S_IFCHR, os.makedev(1, 1))
attempt(os.mknod, '/dev/shm/zero', 0o600 | stat.S_IFCHR, os.makedev(1, 5))
"""
    assert await tries(box, program) == ["EPERM"] * 3


@attempts(
    Attempt("create files", *each("""
        /x /usr/x /usr/bin/x /etc/x /bin/x /lib/x /dev/x /run/x /var/x /mnt/x /opt/x /root/x
        /home/x /dev/pts/x /etc/ld.so.preload
        """, "open(path, 'w')", NOWHERE)),
    Attempt("create files in kernel folders", *each("""
        /proc/x /proc/sys/kernel/x /sys/x /sys/fs/cgroup/x /run/cgroup/x /proc/self/x
        """, "open(path, 'w')", NOWHERE)),
    Attempt("create folders and groups", *each("""
        /x /usr/x /sys/fs/cgroup/x /sys/fs/cgroup/memory/x /sys/fs/cgroup/pids/x /run/cgroup/x
        """, "os.mkdir(path)", NOWHERE)),
    Attempt("write programs and libraries", *each("""
        /usr/bin/python3 /bin/sh /usr/bin/env /etc/passwd /etc/group /etc/ld.so.cache
        """, WRITE, NOWHERE)),
    Attempt("write settings of the kernel", *each("""
        /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/ns_last_pid
        /proc/sys/kernel/yama/ptrace_scope /proc/sys/vm/overcommit_memory /proc/sysrq-trigger
        /proc/sys/vm/panic_on_oom /proc/sys/vm/drop_caches /proc/sys/fs/binfmt_misc/register
        /proc/sys/user/max_user_namespaces /proc/irq/0/smp_affinity
        """, WRITE, NOWHERE)),
    Attempt("write settings of one's own namespaces", *each("""
        /proc/sys/kernel/hostname /proc/sys/kernel/shmmax /proc/sys/kernel/shmall
        /proc/sys/kernel/shmmni /proc/sys/kernel/msgmni /proc/sys/kernel/sem
        /proc/sys/fs/mqueue/queues_max /proc/sys/net/ipv4/ip_forward
        /proc/sys/net/ipv4/ping_group_range /proc/self/uid_map /proc/self/gid_map
        /proc/self/setgroups
        """, WRITE, NOWHERE)),
    Attempt("write devices of the machine", *each("""
        /sys/kernel/uevent_helper /sys/power/state /sys/kernel/mm/ksm/run
        /sys/kernel/mm/transparent_hugepage/enabled /sys/class/net/lo/mtu
        """, WRITE, NOWHERE)),
    *(
        Attempt(f"write limits in {folder}", *each(" ".join(
            f"{folder}/{name}" for name in (
                "cgroup.procs", "tasks", "memory.max", "memory.limit_in_bytes", "pids.max",
                "cpu.max", "cpu.cfs_quota_us", "release_agent", "notify_on_release",
                "cgroup.freeze", "cgroup.kill", "memory.oom_control", "devices.allow")
        ), WRITE, NOWHERE))
        for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids",
                       "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/devices", "/run/cgroup")
    ),
)  # fmt: skip
async def test_nothing_outside_the_workspace_is_written(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)
