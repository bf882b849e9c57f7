"""mteb tasks that need no network, on data that ships; importing them imports mteb."""

from ssmoe_embed.common.lazy import require_mteb

require_mteb()

from ssmoe_embed.evaluation.tasks.offline.registry import add_task, offline_task, offline_tasks  # noqa: E402
from ssmoe_embed.evaluation.tasks.offline.retrieval import retrieval_task  # noqa: E402

__all__ = ["add_task", "offline_task", "offline_tasks", "retrieval_task"]
