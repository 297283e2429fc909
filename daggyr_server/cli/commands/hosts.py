"""The commands about where tasks run: `pools`, `agents`, `agent drain` and `agent forget`.

They ask the server and know nothing of executors.
"""

from __future__ import annotations

import click

from daggyr.client import Client
from daggyr_server.cli import shapes, stdout, tables, words
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.options import Settings, command, settings_object


@command("pools", example="daggyr pools")
@settings_object
def pools(settings: Settings) -> int:
    """List the server's pools: what they offer, what is in use, and how many tasks wait for capacity."""

    async def work(client: Client) -> int:
        found = await client.pools()
        stdout.document([shapes.pool(pool) for pool in found]) if settings.json else tables.show_pools(found)
        return 0

    return with_client(settings, work)


@command("agents", example="daggyr agents")
@settings_object
def agents(settings: Settings) -> int:
    """List the agents that are connected, or were until a moment ago."""

    async def work(client: Client) -> int:
        found = await client.agents()
        if settings.json:
            stdout.document([shapes.agent(agent) for agent in found])
        elif found:
            tables.show_agents(found)
        else:
            stdout.notice("no agent is connected")
        return 0

    return with_client(settings, work)


@click.group("agent")
def agent() -> None:
    """Steer an agent."""


@command("drain", example="daggyr agent drain host1")
@click.argument("name", metavar="NAME")
@settings_object
def drain(settings: Settings, name: str) -> int:
    """Let the agent NAME take nothing new, finish what it runs, and leave."""

    async def work(client: Client) -> int:
        running = await client.drain_agent(name)
        if settings.json:
            stdout.document({"name": name, "running": running})
        else:
            stdout.line(f"agent {words.printable(name)} drains; {words.plural(running, 'task')} still to finish")
        return 0

    return with_client(settings, work)


@command("forget", example="daggyr agent forget host1")
@click.argument("name", metavar="NAME")
@settings_object
def forget(settings: Settings, name: str) -> int:
    """Forget the agent NAME, for a host that was set up anew or will not come back.

    The agent must not be connected. Another agent with its id may have another key afterwards. The tasks that it still had run
    elsewhere at once, and not only after its lease. NAME may be an agent's id as well.
    """

    async def work(client: Client) -> int:
        lost = await client.forget_agent(name)
        if settings.json:
            stdout.document({"name": name, "lost": lost})
        else:
            stdout.line(f"agent {words.printable(name)} is forgotten; {words.plural(lost, 'task')} of it run again elsewhere")
        return 0

    return with_client(settings, work)


agent.add_command(drain)
agent.add_command(forget)
