"""Accounting for the tests' Slurm cluster: slurmdbd on a MariaDB of its own, with limits, from Debian's packages.

`SlurmCluster.account` starts it when a test needs it first, and the cluster's controller is started anew with it. From then on
each job belongs to the account `main`. The database listens on a socket in the cluster's folder only. These qualities of service
refuse:

    few       more than MAX_SUBMIT jobs of a user at once
    narrow    jobs of more than one core
"""

from __future__ import annotations

import pwd
import shutil
from socket import gethostname
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.slurm_cluster import SlurmCluster

MAX_SUBMIT = 20
PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db", "mariadb-admin")

CONFIGURATION = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={folder}/munge/socket
AccountingStoragePort={port}
AccountingStorageEnforce=associations,limits,qos
"""
_DATABASE_DAEMON = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
_SETUP = (
    ("add", "cluster", "tests"),
    ("add", "account", "main", "cluster=tests"),
    ("add", "qos", "few", f"MaxSubmitJobsPerUser={MAX_SUBMIT}"),
    ("add", "qos", "narrow", "MaxTRESPerJob=cpu=1", "Flags=DenyOnLimit"),
    ("modify", "account", "main", "set", "qos=normal,few,narrow"),
    ("add", "user", "root", "account=main"),
    ("modify", "user", "root", "set", "DefaultAccount=main"),
)


def start(cluster: SlurmCluster, port: int) -> None:
    """Start the database and slurmdbd, and set up account and limits. Returns when they are there."""
    home = cluster.folder / "database"
    home.mkdir(mode=0o755)
    shutil.chown(home, "mysql", "mysql")
    listening = home / "socket"
    cluster.ask(
        *("mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={home / 'data'}", "--skip-test-db"),
        "--auth-root-authentication-method=normal",
    )
    user = pwd.getpwnam("mysql")  # from its start on: who becomes another user later no longer ends with this process
    cluster.run(
        "mariadbd",
        *("--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"),
        *(
            "mariadbd",
            "--no-defaults",
            f"--datadir={home / 'data'}",
            f"--socket={listening}",
            "--skip-networking",
        ),
        *(f"--pid-file={home / 'pid'}", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"),
    )
    ping = ("mariadb-admin", "--no-defaults", "--user=root", f"--socket={listening}", "ping")
    cluster.until(lambda: "alive" in cluster.ask(*ping), "mariadbd")
    settings = cluster.folder / "slurmdbd.conf"
    settings.touch(mode=0o600)
    settings.write_text(_DATABASE_DAEMON.format(folder=cluster.folder, host=gethostname().partition(".")[0], port=port))
    with cluster.configuration.open("a") as file:
        file.write(CONFIGURATION.format(port=port, folder=cluster.folder))
    # This is how libmariadb finds a socket for "localhost".
    cluster.run("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(listening))
    cluster.until(lambda: "Cluster" in cluster.ask("sacctmgr", "show", "cluster"), "slurmdbd")
    for words in _SETUP:
        cluster.ask("sacctmgr", "--immediate", *words)
