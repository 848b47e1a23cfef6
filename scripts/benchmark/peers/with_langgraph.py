"""A LangGraph graph of one node that goes round, kept by its SQLite checkpointer: with_langgraph.py MODE PLACE SIZE

once     one process that runs the node once
steps    a round of the node in a thread that has made SIZE rounds
"""

import sqlite3
import sys
import uuid
from pathlib import Path
from typing import TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from turns import Turns, full_length


class State(TypedDict):
    number: int


mode, place, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
place.mkdir(exist_ok=True)
db = sqlite3.connect(place / "langgraph.sqlite", check_same_thread=False)
db.execute(f"PRAGMA synchronous={'FULL' if mode == 'once' else 'OFF'}")  # OFF only until the history is there
turn: Turns | None = None


def node(state: State) -> State:
    global turn
    if mode == "steps" and state["number"] >= size:
        if turn is None:
            full_length(db)
            journal, number = db.execute("PRAGMA journal_mode").fetchone(), db.execute("PRAGMA synchronous").fetchone()
            turn = Turns(f"journal_mode={journal[0]} synchronous={number[0]}")
        turn()
    return {"number": state["number"] + 1}


builder = StateGraph(State)
builder.add_node("node", node)
builder.add_edge(START, "node")
builder.add_conditional_edges("node", lambda _: END if mode == "once" else "node", ["node", END])
graph = builder.compile(checkpointer=SqliteSaver(db))
graph.invoke(
    {"number": 0},
    {"configurable": {"thread_id": str(uuid.uuid4())}, "recursion_limit": 10**9},
    durability="sync",
)
