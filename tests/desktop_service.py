"""A notification service (org.freedesktop.Notifications) on the session bus: appends each notification to a file.

python desktop_service.py FILE COMMAND...   own the name, run COMMAND, exit with its status
"""

import asyncio
import json
import sys
from typing import Any

from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, dbus_method


class Notifications(ServiceInterface):
    def __init__(self, path: str) -> None:
        super().__init__("org.freedesktop.Notifications")
        self.path = path

    @dbus_method()
    def Notify(
        self,
        app: "s",  # noqa: F821
        replaces: "u",  # noqa: F821
        icon: "s",  # noqa: F821
        summary: "s",  # noqa: F821
        body: "s",  # noqa: F821
        actions: "as",  # noqa: F722
        hints: "a{sv}",  # noqa: F722
        expire: "i",  # noqa: F821
    ) -> "u":  # noqa: F821
        urgency: Any = hints["urgency"].value if "urgency" in hints else None
        with open(self.path, "a") as file:
            file.write(json.dumps({"app": app, "summary": summary, "body": body, "urgency": urgency}) + "\n")
        return 1

    @dbus_method()
    def GetCapabilities(self) -> "as":  # noqa: F722
        return ["body"]

    @dbus_method()
    def GetServerInformation(self) -> "ssss":  # noqa: F821
        return ["test", "test", "1", "1.2"]


async def main() -> int:
    bus = await MessageBus().connect()
    bus.export("/org/freedesktop/Notifications", Notifications(sys.argv[1]))
    await bus.request_name("org.freedesktop.Notifications")
    running = await asyncio.create_subprocess_exec(*sys.argv[2:])
    return await running.wait()


sys.exit(asyncio.run(main()))
