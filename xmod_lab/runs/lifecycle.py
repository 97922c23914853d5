"""The life of a run, the same for every command: from the lock on its folder to metrics.json."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from xmod_lab.config.schema import RunConfig
from xmod_lab.processes import barrier
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.tracking import Tracking


@contextlib.contextmanager
def open_run(
    cfg: RunConfig,
    run: RunDir,
    *,
    outputs: Sequence[str],
    facts: Mapping[str, object],
    columns: Sequence[str] = (),
) -> Iterator[Tracking | None]:
    """Begin the run of ``cfg`` in the folder ``run``, or go on with it.

    The folder is locked and compared with ``cfg``, and config.yaml is written before anything else.
    So all that can be refused must have been refused before. :meth:`Tracking.finish` takes the
    final figures; they are written to metrics.json when the block ends, as the last file of the
    run.

    Args:
        outputs: what the command writes, see :meth:`RunDir.begin`.
        facts: what a run that goes on must agree with, such as digests of its data.
        columns: of metrics.csv; without any, neither metrics.csv nor a W&B run is made.
    Yields:
        Where figures go. ``None``: the run is finished, and nothing is left to do.
    Raises:
        UserError: the folder cannot be used, or holds another run; or a fact differs.
    """
    if not run.begin(cfg, outputs):
        yield None
        return
    if facts:
        run.remember(**facts)
    with Tracking(cfg, run, columns) as tracking:
        yield tracking
        if tracking.final is not None:
            run.finish(tracking.final)
            tracking.summarise()
    barrier()
