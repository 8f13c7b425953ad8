"""Which process of pytest-xdist runs which case."""

from typing import Any

from xdist.scheduler import LoadScopeScheduling


class ByDetector(LoadScopeScheduling):
    """Keeps the cases of a model and detector in one process, since they share a fit; other tests go file by file."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("[")[2].rpartition("/")[0] or str(super()._split_scope(nodeid))

    def schedule(self) -> None:
        """Hands out work. A process that replaces another gets two scopes: it runs a test once it has the next."""
        replacing = self.collection is not None
        super().schedule()
        if replacing:
            super().schedule()

    def remove_node(self, node: Any) -> str | None:
        """The test at which a process died, if it did; what it had not run yet goes to another process.

        The base class would hand out the fatal test again, for ever, and wait for scopes that are done already.
        """
        workload = self.assigned_work[node]
        crashed = next((nodeid for unit in workload.values() for nodeid, done in unit.items() if not done), None)
        for scope, unit in list(workload.items()):
            if crashed in unit:
                unit[crashed] = True
            if all(unit.values()):
                del workload[scope]
        super().remove_node(node)
        return crashed
