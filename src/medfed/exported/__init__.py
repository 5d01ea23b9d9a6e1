"""Tasks that `medfed export --task` wrote, loaded from their folder alone."""

from medfed.exported.processor import Processor
from medfed.exported.task import ExportedTask

__all__ = ["ExportedTask", "Processor"]
