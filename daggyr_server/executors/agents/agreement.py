"""What a coordinator and an agent agree on after a hello: which attempts the agent is to have.

The agent executor calls `agree` for each agent that it takes in. A break in the connection may have swallowed assignments, stops
and recalls; a start of either side may have made it forget attempts. After one exchange both sides hold the same. Nothing here
sends or reports: the executor says what is in the `Agreement`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from daggyr.attempts.keys import Ident, ident_of, key_of
from daggyr.v1.agents_pb2 import Hello
from daggyr.v1.task_pb2 import KILLED, LOST, RETURNED, AssignmentBatch, AttemptKey, AttemptOutcome
from daggyr_server.executors.agents.known_agent import PLACED_EARLIER, KnownAgent


@dataclass(slots=True)
class Agreement:
    """What is to be said to the agent, and which attempts ended here."""

    end: list[AttemptKey]  # the agent runs these, and they are not its own: the welcome names them
    recall: list[AttemptKey]  # requests that are said again, because the first time may have been lost
    stop: list[AttemptKey]
    send_again: list[AssignmentBatch] = field(default_factory=list)  # what the agent never got
    ended: list[tuple[AttemptKey, AttemptOutcome, str]] = field(default_factory=list)  # with a note, if there is one to make


def agree(agent: KnownAgent, hello: Hello, *, same_tracker: bool, continues: bool) -> Agreement:
    """Compare what the agent says that it has with what it was given, and record the outcome in `agent`.

    Without `same_tracker`, all that the agent has belongs to another tracker. `continues` says that neither side
    has begun anew.
    """
    held = {ident_of(key) for key in hello.held} if same_tracker else set()
    has = held | {ident_of(key) for key in hello.ended} if same_tracker else set()
    ours = agent.held
    recall, stop = (
        [key_of(ident) for ident, requested in agent.requested.items() if requested == request and ident in has]
        for request in ("recall", "stop")
    )
    agreement = Agreement(end=[key_of(ident) for ident in held - ours.keys()], recall=recall, stop=stop)
    # To send an attempt again is safe in any case, because an agent knows what it has. Of the others nobody will ever know more.
    never_got: list[Ident] = []
    for ident in sorted(ours.keys() - has):
        request = agent.requested.pop(ident, None)
        if ours[ident] is PLACED_EARLIER:
            ended: tuple[AttemptOutcome, str] = (LOST, "its agent came back without it")
        elif not continues:
            ended = (LOST, "its agent was started again")
        elif request is not None:
            ended = (KILLED if request == "stop" else RETURNED, "")
        else:
            never_got.append(ident)
            continue
        del ours[ident]
        agreement.ended.append((key_of(ident), *ended))
    if agent.lifeless:
        agent.foreign = frozenset((run_id, number, attempt) for run_id, number, attempt, _ in has - ours.keys())
    agreement.send_again = agent.again(never_got)
    return agreement
