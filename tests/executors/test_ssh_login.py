"""How the ssh executor gets to its targets: host keys, keys, ~/.ssh/config, jump hosts, and accounts of all kinds."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import msgspec
import pytest
from executor_harness import GRACE, CollectedReports, eventually, executor_context, runs
from executor_kinds import ssh_settings
from ssh_pools import Pools
from support.sshd_server import SshdServer, account, sshd_server
from support.task_specs import python, shell, spec
from support.waiting import DEADLINE

from daggyr_server.executors.base import ExecutorError
from daggyr_server.executors.ssh.executor import SshExecutor
from daggyr_server.executors.ssh.settings import SshSettings

HELLO = spec("/bin/echo", "hello")


Refused = Callable[..., Awaitable[None]]


@pytest.fixture
def refused(pools: Pools, caplog: pytest.LogCaptureFixture) -> Refused:
    """Open a pool whose target cannot be used, and wait for a warning that says why."""

    async def refused(words: str, *targets: dict[str, Any], **settings: Any) -> None:
        harness = await pools.open(*targets, **settings)
        await eventually(lambda: words in caplog.text)
        assert harness.reports.states == []

    return refused


async def adds(key: Path) -> None:
    """Give the SSH agent a key once it listens at its socket."""
    async with asyncio.timeout(DEADLINE):
        while True:
            adding = await asyncio.create_subprocess_exec("ssh-add", "-q", str(key))
            if await adding.wait() == 0:
                return
            await asyncio.sleep(0.01)


def new_key() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


class TestHostKeys:
    async def test_Unknown(self, refused: Refused, server: SshdServer) -> None:
        server.known_hosts.write_text("")
        await refused(f"ssh-keyscan -p {server.port} 127.0.0.1")
        assert "Accepted" not in server.log, "nobody logs in to a host that is not known"

    async def test_UnknownByAnAlias(self, refused: Refused, server: SshdServer, tmp_path: Path) -> None:
        """ssh-keyscan does not read ssh_config."""
        (tmp_path / "config").write_text(f"Host far\n HostName 127.0.0.1\n Port {server.port}\n")
        server.known_hosts.write_text("")
        await refused(f"ssh-keyscan -p {server.port} 127.0.0.1", {"host": "far"}, ssh_config=tmp_path / "config")

    async def test_Another(self, refused: Refused, server: SshdServer) -> None:
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {new_key()}\n")
        await refused("is another than the one that is known")

    async def test_Pinned(self, pools: Pools, server: SshdServer) -> None:
        server.known_hosts.write_text("")
        harness = await pools.open(server.target(host_key=server.public_host_key))
        assert (await harness.run_one(HELLO)).text == "hello\n"

    async def test_PinnedToAnother(self, refused: Refused, server: SshdServer) -> None:
        await refused("does not have the key that `host_key`", server.target(host_key=new_key()))

    async def test_Authority(self, pools: Pools, tmp_path: Path) -> None:
        authority = asyncssh.generate_private_key("ssh-ed25519")
        certificate = tmp_path / "certificate"
        certificate.touch()
        with sshd_server(None, f"HostCertificate {certificate}") as server:
            host_key = asyncssh.read_public_key(server.host_key.with_suffix(".pub"))
            made = authority.generate_host_certificate(host_key, "a host", principals=["127.0.0.1"])
            certificate.write_bytes(made.export_certificate())
            server.stop()
            server.start()
            ca = authority.export_public_key().decode().strip()
            harness = await pools.open(server.target(host_ca=ca), known_hosts=None)
            assert (await harness.run_one(HELLO)).text == "hello\n"

    async def test_AnyIfThatIsSaidLoudly(self, pools: Pools, server: SshdServer) -> None:
        harness = await pools.open(known_hosts=None, insecure_trust_any_host_key=True)
        assert (await harness.run_one(HELLO)).text == "hello\n"


class TestLogins:
    async def test_AKeyThatMayNotLogIn(self, refused: Refused, server: SshdServer, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        words = f"127.0.0.1:{server.port} does not let {server.user} in with the key {key}"
        await refused(words, server.target(private_key_file=key))

    async def test_AKeyWithAPassphrase(self, refused: Refused, server: SshdServer, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key("pkcs8-pem", passphrase="secret words"))
        await refused("belongs into an SSH agent", server.target(private_key_file=key))

    async def test_FilesThatAreNotThereAreSaidAtOnce(self, pools: Pools, server: SshdServer, tmp_path: Path) -> None:
        missing = tmp_path / "missing"
        with pytest.raises(ExecutorError, match=r"pool pool: private_key_file of target target: cannot read .*missing"):
            await pools.open(server.target(private_key_file=missing))
        with pytest.raises(ExecutorError, match=r"known_hosts: cannot read .*missing"):
            await pools.open(known_hosts=missing)
        with pytest.raises(ExecutorError, match=r"no public key in OpenSSH's form"):
            await pools.open(server.target(host_key="rubbish"))

    async def test_NobodyListens(self, refused: Refused, server: SshdServer) -> None:
        server.stop()
        await refused("refused")

    async def test_TheUsersConfigurationIsHonoured(
        self, pools: Pools, server: SshdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Alias, port, user, key, known hosts and a jump host all come from ~/.ssh/config."""
        with sshd_server() as jump:
            folder = tmp_path / "home/.ssh"
            folder.mkdir(parents=True)
            (folder / "config").write_text(
                f"Host far\n HostName 127.0.0.1\n Port {server.port}\n User {server.user}\n ProxyJump near\n"
                f" IdentityFile {server.private_key}\n"
                f"Host near\n HostName 127.0.0.1\n Port {jump.port}\n User {jump.user}\n IdentityFile {jump.private_key}\n"
            )
            (folder / "known_hosts").write_text(server.known_hosts.read_text() + jump.known_hosts.read_text())
            monkeypatch.setenv("HOME", str(folder.parent))
            harness = await pools.open({"host": "far"}, known_hosts=None, ssh_config=None)
            told = await harness.run_one(HELLO)
            assert (told.text, told.host) == ("hello\n", "far")
            assert "Accepted publickey" in jump.log and "Accepted publickey" in server.log

    async def test_AnAgentsKey(self, pools: Pools, server: SshdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        socket = tmp_path / "agent"
        agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", str(socket), stdout=subprocess.DEVNULL)
        try:
            await eventually(socket.exists)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
            monkeypatch.setenv("HOME", str(tmp_path))
            await adds(server.private_key)
            harness = await pools.open(server.target(private_key_file=None))
            assert (await harness.run_one(HELLO)).text == "hello\n"
        finally:
            agent.send_signal(signal.SIGTERM)
            await agent.wait()

    async def test_AJumpHost(self, pools: Pools, server: SshdServer) -> None:
        with sshd_server() as jump:
            server.known_hosts.write_text(server.known_hosts.read_text() + jump.known_hosts.read_text())
            jump.let_in(server.private_key)
            harness = await pools.open(server.target(jump=f"{jump.user}@127.0.0.1:{jump.port}"))
            assert (await harness.run_one(HELLO)).text == "hello\n"
            assert "Accepted publickey" in jump.log
            await harness.executor.close()
            await eventually(lambda: jump.connections() == 0)

    async def test_TheJumpHostOfAnAlias(self, pools: Pools, server: SshdServer, tmp_path: Path) -> None:
        """What the pool says of known hosts holds for a jump host that stands in ssh_config, too."""
        with sshd_server() as jump:
            config = tmp_path / "config"
            config.write_text(
                f"Host far\n HostName 127.0.0.1\n Port {server.port}\n User {server.user}\n ProxyJump near\n"
                f" IdentityFile {server.private_key}\n"
                f"Host near\n HostName 127.0.0.1\n Port {jump.port}\n User {jump.user}\n IdentityFile {jump.private_key}\n"
            )
            server.known_hosts.write_text(server.known_hosts.read_text() + jump.known_hosts.read_text())
            harness = await pools.open({"host": "far"}, ssh_config=config)
            assert (await harness.run_one(HELLO)).text == "hello\n"

    async def test_AJumpHostThatIsNotKnown(self, refused: Refused, server: SshdServer) -> None:
        with sshd_server() as jump:
            target = server.target(jump=f"{jump.user}@127.0.0.1:{jump.port}")
            await refused(f"the jump host 127.0.0.1:{jump.port}", target)


@pytest.fixture
def odd_shell() -> Iterator[Path]:
    """A login shell that is no POSIX shell: it splits its command at spaces and greets whoever comes."""
    with tempfile.TemporaryDirectory(prefix="daggyr-shell-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "shell"
        path.write_text('#!/bin/sh\n[ "$1" = -c ] || exit 9\necho "Welcome; READY to serve"\nset -f\nexec $2\n')
        path.chmod(0o755)
        yield path


class TestAccounts:
    """Accounts of other users than the one who runs the tests."""

    async def test_StartUpFilesThatPrintAndAreSlow(self, pools: Pools, server: SshdServer) -> None:
        with account("/bin/bash") as user:
            rc = Path(user.pw_dir) / ".bashrc"
            rc.write_text("echo 'Message of the day: READY'; echo oops >&2; printf 'no line end'; sleep 1; export FROM_RC=yes\n")
            harness = await pools.open(server.target(user=user.pw_name), directory="")
            told = await harness.run_one(shell('echo "$FROM_RC $(id -un) $PWD"'))
            assert told.text == f"yes {user.pw_name} {user.pw_dir}\n"
            assert (Path(user.pw_dir) / ".local/state/daggyr/ssh").stat().st_mode & 0o777 == 0o700
            assert (Path(user.pw_dir) / ".local").stat().st_uid == user.pw_uid
            await harness.executor.close()

    async def test_AShellThatIsNoneOfPosix(self, pools: Pools, server: SshdServer, odd_shell: Path) -> None:
        with account(str(odd_shell)) as user:
            harness = await pools.open(server.target(user=user.pw_name), directory="~/state")
            words = ["$HOME `id` *", 'it\'s\n"quoted"', "-n", "größer"]
            told = await harness.run_one(spec("/bin/sh", "-c", 'printf "%s|" "$@"', "sh", *words))
            assert told.text == "".join(f"{word}|" for word in words)
            assert (Path(user.pw_dir) / "state/ssh").is_dir()
            await harness.executor.close()

    async def test_AnAccountThatMayRunNothing(self, refused: Refused, server: SshdServer) -> None:
        with account("/usr/sbin/nologin") as user:
            await refused("its shell ended", server.target(user=user.pw_name))


@pytest.mark.parametrize("interpreter", ["/bin/dash", "/bin/bash --posix", "/bin/busybox sh"])
class TestShells:
    """Tasks run with whatever shell /bin/sh is. Here sshd puts another shell in its place."""

    async def test_TheSameHoldsInEach(self, interpreter: str, pools: Pools, tmp_path: Path) -> None:
        if shutil.which(interpreter.split()[0]) is None:
            assert not os.environ.get("CI"), f"{interpreter} is missing: see tests/packages.txt"
            pytest.skip(f"{interpreter} is not installed")
        every = "".join(map(chr, range(1, 0x250))) + "日本"
        odd = {"A.B-c": "x y", "IFS": ":", "PPID": "5", "dg_root": "/", "home": "h", "LANG": "C"}
        with sshd_server(None, f"ForceCommand exec {interpreter}") as server:
            pools.server = server
            harness = await pools.available(context=executor_context(grace=GRACE))
            source = "import os, sys\nsys.stdout.buffer.write(os.fsencode(sys.argv[1]) + sys.stdin.buffer.read())"
            told = await harness.run(
                python(source, every, stdin=every * 100 + "\0\\0end"),
                python("import os, sys\nfor n in sys.argv[1:]: print(n, os.environ[n])", *odd, environment=odd),
                shell("exit 137"),
                shell("kill -KILL $$"),
                spec("no-such-program"),
                spec("/bin/pwd", working_directory="/no/such/folder"),
                shell("exec sleep 0; echo not reached", working_directory=tmp_path),
                spec("-leading-dash"),
            )
            outcomes = [one.outcome for one in told]
            assert outcomes == ["SUCCEEDED"] * 2 + ["FAILED"] * 2 + ["REJECTED"] * 2 + ["SUCCEEDED", "REJECTED"]
            assert told[0].output() == (every + every * 100 + "\0\\0end").encode()
            assert told[1].text == "".join(f"{name} {value}\n" for name, value in odd.items())
            assert (told[2].result.exit_code, told[3].result.signal) == (137, 9)
            timed, _, child = await harness.timed('sleep 1000 & echo "$!"; echo "$!" > "$1"; wait', tmp_path)
            told_timed = await harness.ends(timed)
            assert (told_timed.outcome, told_timed.text) == ("TIMED_OUT", f"{child}\n")
            assert not runs(child)
            key = await harness.give_one(shell('trap "" TERM; echo x > "$1"; while :; do sleep 100; done', str(tmp_path / "up")))
            await eventually((tmp_path / "up").exists)
            harness.stop(key)
            told_stop = await harness.ends(key)
            assert (told_stop.outcome, told_stop.result.signal) == ("KILLED", 9)
            await eventually(lambda: pools.folders() == [])
            await harness.executor.close()


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"targets": [{"host": "a"}, {"host": "a"}]}, "two targets are called 'a'"),
            ({"targets": [{"host": "a", "host_key": "x", "host_ca": "y"}]}, "exclude each other"),
            ({"targets": [{"host": "a", "resources": {"cores": 0}}]}, "leave the target out"),
            ({"targets": []}, "length"),
            ({"targets": [{"host": "a", "hots_key": "x"}]}, "hots_key"),
            ({"targets": [{"host": "a"}], "insecure_trust_any_host_key": True, "known_hosts": "/x"}, "useless"),
            ({"targets": [{"host": "a"}], "directory": "a\nb"}, "line break"),
        ],
    )
    def test_WhatCannotBeIsRefused(self, changes: dict[str, object], words: str) -> None:
        with pytest.raises((msgspec.ValidationError, ValueError), match=words):
            msgspec.convert(changes, SshSettings, dec_hook=lambda _, value: Path(value))

    def test_TheLargestTargetCounts(self, server: SshdServer) -> None:
        small, large = server.target("small"), server.target("large", resources={"cores": 64, "memory_mb": 10, "gpus": 1})
        settings = SshSettings(**ssh_settings(server, small, large))
        executor = SshExecutor("pool", settings, CollectedReports(), executor_context())
        assert executor.largest() == {"cores": 64, "memory_mb": 1_000, "gpus": 1}
